//! One report for many challenges (docs/formats.md, section 1.3): a Merkle tree whose root is the
//! nonce of a freshness statement.
//!
//! A leaf is SHA-256( 0x00 || challenge ), a node SHA-256( 0x01 || left || right ). The leaves are
//! filled up to a power of two with zeros, for which no challenge is known.

use thiserror::Error;

use crate::codec::{CodecError, Reader, Writer};
use crate::hash::sha256;
use crate::statement::STATEMENT_LEN;

/// The most challenges in a batch.
pub const BATCH_MAX: usize = 1024;

/// Why a batch cannot be made or read.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum FreshnessError {
    /// A field is cut short, or bytes follow the last one.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// The batch is empty or too large.
    #[error("a batch of {count} challenges, not of 1 to {BATCH_MAX}")]
    Count {
        /// The number of challenges.
        count: usize,
    },
    /// The path is longer than the largest batch's.
    #[error("a path of {depth} nodes, more than {DEPTH_MAX}")]
    Depth {
        /// The number of nodes.
        depth: u8,
    },
    /// The leaf is outside the tree.
    #[error("leaf {index} of a tree of depth {depth}")]
    Index {
        /// The leaf's number.
        index: u16,
        /// The tree's depth.
        depth: u8,
    },
}

/// The tree over a batch of challenges.
#[derive(Clone, Debug)]
pub struct Tree {
    /// From the leaves to the root; each has half as many nodes as the one before.
    levels: Vec<Vec<[u8; 32]>>,
    root: [u8; 32],
}

impl Tree {
    /// The tree over `challenges`.
    ///
    /// # Errors
    /// [`FreshnessError::Count`] when there are none or more than [`BATCH_MAX`].
    pub fn new(challenges: &[[u8; 32]]) -> Result<Self, FreshnessError> {
        let count = challenges.len();
        if count == 0 || count > BATCH_MAX {
            return Err(FreshnessError::Count { count });
        }
        let mut level: Vec<_> = challenges.iter().map(leaf).collect();
        level.resize(count.next_power_of_two(), [0; 32]);
        let mut levels = Vec::new();
        while level.len() > 1 {
            let (pairs, _) = level.as_chunks::<2>();
            let above = pairs.iter().map(|[left, right]| node(left, right)).collect();
            levels.push(level);
            level = above;
        }
        let root = level.first().copied().unwrap_or_default();
        Ok(Self { levels, root })
    }

    /// The root: the nonce of the freshness statement.
    #[must_use]
    pub const fn root(&self) -> [u8; 32] {
        self.root
    }

    /// The path of challenge number `index`, if there is such a leaf.
    #[must_use]
    pub fn path(&self, index: usize) -> Option<Path> {
        let mut at = index;
        let mut siblings = Vec::with_capacity(self.levels.len());
        for level in &self.levels {
            siblings.push(*level.get(at ^ 1)?);
            at /= 2;
        }
        if at != 0 {
            return None;
        }
        Some(Path { index: u16::try_from(index).ok()?, siblings })
    }
}

/// The nodes that lead from one challenge to the root.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Path {
    index: u16,
    siblings: Vec<[u8; 32]>,
}

impl Path {
    /// The root that this path leads to from `challenge`.
    #[must_use]
    pub fn root(&self, challenge: &[u8; 32]) -> [u8; 32] {
        let mut at = self.index;
        let mut hash = leaf(challenge);
        for sibling in &self.siblings {
            hash = if at & 1 == 0 { node(&hash, sibling) } else { node(sibling, &hash) };
            at >>= 1;
        }
        hash
    }
}

/// Section 7 of a bundle: statement 512 | report_len u32 | report | leaf index u16 | depth u8 |
/// zero u8 | depth nodes of 32.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Freshness<'a> {
    /// The freshness statement.
    pub statement: &'a [u8],
    /// The platform's report over it.
    pub report: &'a [u8],
    /// The path of this verifier's challenge.
    pub path: Path,
}

impl<'a> Freshness<'a> {
    /// Reads the section.
    ///
    /// # Errors
    /// [`FreshnessError`] names what is wrong with it.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, FreshnessError> {
        let mut reader = Reader::new(bytes);
        let statement = reader.bytes(STATEMENT_LEN)?;
        let report_len = reader.u32()?;
        let report = reader.bytes(report_len as usize)?;
        let index = reader.u16()?;
        let depth = reader.u8()?;
        reader.zeros(1)?;
        if depth > DEPTH_MAX {
            return Err(FreshnessError::Depth { depth });
        }
        if u32::from(index) >= 1_u32.wrapping_shl(depth.into()) {
            return Err(FreshnessError::Index { index, depth });
        }
        let siblings = (0..depth).map(|_| reader.array()).collect::<Result<_, _>>()?;
        reader.finish()?;
        Ok(Self { statement, report, path: Path { index, siblings } })
    }

    /// The encoding.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.bytes(self.statement).u32(self.report.len() as u32).bytes(self.report);
        writer.u16(self.path.index).u8(self.path.siblings.len() as u8).u8(0);
        for sibling in &self.path.siblings {
            writer.bytes(sibling);
        }
        writer.into_bytes()
    }
}

fn leaf(challenge: &[u8; 32]) -> [u8; 32] {
    sha256(&[&[0], challenge])
}

fn node(left: &[u8; 32], right: &[u8; 32]) -> [u8; 32] {
    sha256(&[&[1], left, right])
}

const DEPTH_MAX: u8 = 10;

#[cfg(test)]
mod tests {
    use super::*;

    fn challenges(count: usize) -> Vec<[u8; 32]> {
        (0..count).map(|i| sha256(&[&i.to_be_bytes()])).collect()
    }

    #[test]
    fn every_challenge_leads_to_the_root_by_its_own_path_only() {
        for count in [1, 2, 3, 4, 5, 8, 17] {
            let challenges = challenges(count);
            let tree = Tree::new(&challenges).unwrap();
            for (i, challenge) in challenges.iter().enumerate() {
                for (j, _) in challenges.iter().enumerate() {
                    let leads = tree.path(j).unwrap().root(challenge) == tree.root();
                    assert_eq!(leads, i == j, "{count} challenges, {i} by the path of {j}");
                }
            }
            assert!(tree.path(count.next_power_of_two()).is_none());
        }
    }

    #[test]
    fn an_empty_and_a_large_batch_are_refused() {
        assert_eq!(Tree::new(&[]).unwrap_err(), FreshnessError::Count { count: 0 });
        assert!(Tree::new(&challenges(1024)).is_ok());
        assert_eq!(
            Tree::new(&challenges(1025)).unwrap_err(),
            FreshnessError::Count { count: 1025 }
        );
    }

    #[test]
    fn a_section_comes_back_and_every_cut_is_refused() {
        let tree = Tree::new(&challenges(5)).unwrap();
        let path = tree.path(4).unwrap();
        let section = Freshness { statement: &[7; 512], report: &[8; 30], path };
        let mut bytes = section.to_bytes();
        assert_eq!(Freshness::parse(&bytes), Ok(section));
        for cut in 0..bytes.len() {
            assert!(Freshness::parse(&bytes[..cut]).is_err(), "cut at {cut}");
        }
        bytes.push(0);
        assert!(Freshness::parse(&bytes).is_err());
    }

    #[test]
    fn a_leaf_outside_the_tree_and_a_deep_tree_are_refused() {
        let tree = Tree::new(&challenges(4)).unwrap();
        let path = tree.path(0).unwrap();
        let mut bytes = Freshness { statement: &[0; 512], report: &[], path }.to_bytes();
        bytes[516..518].copy_from_slice(&4u16.to_be_bytes());
        assert_eq!(Freshness::parse(&bytes), Err(FreshnessError::Index { index: 4, depth: 2 }));
        bytes[518] = 11;
        assert_eq!(Freshness::parse(&bytes), Err(FreshnessError::Depth { depth: 11 }));
    }
}

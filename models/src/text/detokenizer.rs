//! From token ids to text, one id at a time, whole UTF-8 characters only.

use super::tokenizer::Tokenizer;

/// The bytes of every token and how they join to text.
#[derive(Clone)]
pub(super) struct Pieces {
    bytes: Vec<u8>,
    /// `bytes[ends[id - 1]..ends[id]]` are the bytes of token `id`.
    ends: Vec<usize>,
    special: Vec<bool>,
    strip_first_space: bool,
}

impl Pieces {
    /// Pieces of no token; [`Pieces::push`] adds them in the order of their ids.
    pub(super) fn new(strip_first_space: bool) -> Self {
        Self { bytes: Vec::new(), ends: Vec::new(), special: Vec::new(), strip_first_space }
    }

    /// Adds the next id; an id without a token has no bytes.
    pub(super) fn push(&mut self, piece: &[u8], special: bool) {
        self.bytes.extend_from_slice(piece);
        self.ends.push(self.bytes.len());
        self.special.push(special);
    }

    /// The number of ids.
    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// The bytes of a token; none for an id outside the vocabulary.
    pub(super) fn piece(&self, id: u32) -> &[u8] {
        let id = id as usize;
        let start = id.checked_sub(1).map_or(Some(0), |before| self.ends.get(before).copied());
        let range = start.zip(self.ends.get(id).copied());
        range.and_then(|(start, end)| self.bytes.get(start..end)).unwrap_or_default()
    }

    /// Whether a token is a special one.
    pub(super) fn is_special(&self, id: u32) -> bool {
        self.special.get(id as usize).copied().unwrap_or(false)
    }
}

/// Turns token ids into text as they come. The pieces that it returns, joined, are what [`Tokenizer::decode`] returns
/// for all the ids; none of them splits a UTF-8 character.
pub struct Detokenizer<'a> {
    tokenizer: &'a Tokenizer,
    skip_special: bool,
    at_start: bool,
    /// The beginning of a character, at most three bytes between two calls.
    held: Vec<u8>,
}

impl std::fmt::Debug for Detokenizer<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The held bytes belong to somebody's text.
        let mut out = f.debug_struct("Detokenizer");
        out.field("skip_special", &self.skip_special).finish_non_exhaustive()
    }
}

impl<'a> Detokenizer<'a> {
    pub(super) fn new(tokenizer: &'a Tokenizer, skip_special: bool) -> Self {
        Self { tokenizer, skip_special, at_start: true, held: Vec::new() }
    }

    /// Takes the next id and returns the text that is now complete, which may be none. Bytes that cannot be UTF-8
    /// become U+FFFD; an id outside the vocabulary has no text.
    pub fn push(&mut self, id: u32) -> String {
        let pieces = self.tokenizer.pieces();
        if self.skip_special && pieces.is_special(id) {
            return String::new();
        }
        let mut piece = pieces.piece(id);
        if self.at_start && !piece.is_empty() {
            self.at_start = false;
            if pieces.strip_first_space {
                piece = piece.strip_prefix(b" ").unwrap_or(piece);
            }
        }
        self.held.extend_from_slice(piece);
        self.complete()
    }

    /// The ids ended: what is left of an incomplete character becomes U+FFFD.
    pub fn finish(&mut self) -> String {
        let rest = std::mem::take(&mut self.held);
        self.at_start = true;
        String::from_utf8_lossy(&rest).into_owned()
    }

    /// Takes out everything but the bytes of a character that is not complete yet.
    fn complete(&mut self) -> String {
        let mut text = String::new();
        let mut undecided = 0;
        for chunk in self.held.utf8_chunks() {
            text.push_str(chunk.valid());
            undecided = 0;
            if !chunk.invalid().is_empty() {
                undecided = chunk.invalid().len();
                text.push('\u{fffd}');
            }
        }
        let start = self.held.len().saturating_sub(undecided);
        let tail = self.held.split_off(start);
        self.held.clear();
        // `error_len` is None when the bytes end inside a character that may still become whole.
        if std::str::from_utf8(&tail).is_err_and(|error| error.error_len().is_none()) {
            text.pop();
            self.held = tail;
        }
        text
    }
}

//! How many connections one network holds at once: nobody takes all of them.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::rate::network;

/// Connections by network. No network is kept that has none.
#[derive(Clone, Debug, Default)]
pub struct Peers(Arc<Mutex<HashMap<IpAddr, usize>>>);

/// One connection's place, until it is dropped.
#[derive(Debug)]
pub struct Place {
    peers: Peers,
    network: IpAddr,
}

impl Peers {
    /// A place for one more connection of an address; nothing when its network has `max`.
    pub fn enter(&self, address: IpAddr, max: usize) -> Option<Place> {
        let network = network(address);
        let mut peers = self.lock();
        let count = peers.entry(network).or_insert(0);
        if *count >= max {
            return None;
        }
        *count += 1;
        drop(peers);
        Some(Place { peers: self.clone(), network })
    }

    /// A thread that panicked left nothing half-changed in this table.
    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut peers = self.peers.lock();
        if let Some(count) = peers.get_mut(&self.network) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                peers.remove(&self.network);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_has_its_places_and_gives_them_back() {
        let peers = Peers::default();
        let [one, near, far] = ["2001:db8::1", "2001:db8::2", "2001:db8:0:1::1"]
            .map(|text| text.parse::<IpAddr>().unwrap());
        let first = peers.enter(one, 2).unwrap();
        let second = peers.enter(near, 2).unwrap();
        assert!(peers.enter(one, 2).is_none());
        assert!(peers.enter(far, 2).is_some());
        drop(first);
        let third = peers.enter(one, 2);
        assert!(third.is_some() && peers.enter(near, 2).is_none());
        drop((second, third));
        assert!(peers.lock().is_empty());
    }
}

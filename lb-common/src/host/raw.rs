//! Stores words into the service tables as they are, as the agent's datapath does: what it makes of
//! the API's objects can then be decided on.

use super::HostTables;
use super::builder::store;
use super::family::OfFamily;
use crate::abi::{AddressWord, Backend, BackendId, FrontendKey, FrontendWord, Ip, SetWord};

impl HostTables {
    /// Stores an element of `SETS`.
    pub fn store_set(&self, index: u32, word: SetWord) {
        store(&mut self.sets.borrow_mut(), index, word);
    }

    /// Stores an element of `SLOTS`.
    pub fn store_slot(&self, index: u32, id: BackendId) {
        store(&mut self.slots.borrow_mut(), index, id);
    }

    /// Stores an element of `BACKENDS`.
    pub fn store_backend(&self, id: BackendId, backend: Backend) {
        store(&mut self.backends.borrow_mut(), id, backend);
    }

    /// Stores a frontend; removes it with none.
    pub fn store_frontend<const N: usize>(&self, key: FrontendKey<N>, word: Option<FrontendWord>)
    where
        Self: OfFamily<N>,
    {
        let mut frontends = self.family().frontends.borrow_mut();
        match word {
            Some(word) => {
                self.expect_frontend(&key);
                frontends.insert(key, word);
            }
            None => drop(frontends.remove(&key)),
        }
    }

    /// Stores an address; removes it with none.
    pub fn store_address<const N: usize>(&self, ip: Ip<N>, word: Option<AddressWord>)
    where
        Self: OfFamily<N>,
    {
        let mut addresses = self.family().addresses.borrow_mut();
        match word {
            Some(word) => {
                self.expect_address(&ip, word.flags());
                addresses.insert(ip, word);
            }
            None => drop(addresses.remove(&ip)),
        }
    }
}

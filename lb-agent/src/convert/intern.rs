//! Names that repeat from object to object are stored once.

use std::collections::HashSet;
use std::sync::Arc;

/// Hands out the same [`Arc`] for the same text.
#[derive(Debug)]
pub(super) struct Interner {
    names: HashSet<Arc<str>>,
    prune_at: usize,
}

impl Default for Interner {
    fn default() -> Self {
        Self { names: HashSet::new(), prune_at: Self::LEAST }
    }
}

impl Interner {
    const LEAST: usize = 1024;

    /// The shared form of `text`.
    pub(super) fn share(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.names.get(text) {
            return known.clone();
        }
        if self.names.len() >= self.prune_at {
            // Nobody else holds these any more: objects that came and went.
            self.names.retain(|name| Arc::strong_count(name) > 1);
            self.prune_at = Self::LEAST.max(self.names.len() * 2);
        }
        let name: Arc<str> = text.into();
        self.names.insert(name.clone());
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_text_is_stored_once() {
        let mut names = Interner::default();
        assert!(Arc::ptr_eq(&names.share("default"), &names.share("default")));
    }

    #[test]
    fn names_that_went_out_of_use_are_forgotten() {
        let mut names = Interner::default();
        let kept = names.share("kept");
        for round in 0..10 * Interner::LEAST {
            names.share(&format!("gone-{round}"));
        }
        assert!(names.names.len() <= 2 * Interner::LEAST);
        assert!(Arc::ptr_eq(&kept, &names.share("kept")));
    }
}

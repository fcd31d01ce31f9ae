//! What pruners carry: [`Memory`] for one step, and the [`Episode`] that outlives steps.
//!
//! Invariants
//! - An episode holds its state by pruner, not by chain: a step with another chain in between, or
//!   with another budget, changes nothing of what the others carry.
//! - A step works on memories of its own and is committed as a whole when it has ended well. One
//!   that failed, was late, was refused or was dropped leaves the episode as it was.
//! - State is copied only by a step that changes it.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crate::chain::ResolvedChain;

type State = Arc<dyn Any + Send + Sync>;

/// What a pruner carries: for one request from stage to stage, and for an episode from step to
/// step. Both start empty.
#[derive(Default)]
pub struct Memory {
    request: Option<Box<dyn Any + Send>>,
    episode: Option<State>,
}

impl Memory {
    /// What an earlier stage of this request left.
    pub fn request<T: 'static>(&self) -> Option<&T> {
        self.request.as_ref()?.downcast_ref()
    }

    /// Leaves something for later stages of this request.
    pub fn set_request<T: Send + 'static>(&mut self, value: T) {
        self.request = Some(Box::new(value));
    }

    /// What earlier steps of the episode left.
    pub fn episode<T: 'static>(&self) -> Option<&T> {
        self.episode.as_ref()?.downcast_ref()
    }

    /// What earlier steps of the episode left, to be changed; made by `T::default` if there is
    /// nothing of that type.
    pub fn episode_or_default<T: Clone + Default + Send + Sync + 'static>(&mut self) -> &mut T {
        let own = self.episode.take().and_then(|state| state.downcast::<T>().ok());
        // Shared with the episode until the step ends: copied here, once.
        let own = own.map_or_else(T::default, Arc::unwrap_or_clone);
        let state = self.episode.insert(Arc::new(own));
        Arc::get_mut(state).and_then(|s| s.downcast_mut()).expect("made one line above")
    }

    /// Whether earlier steps of the episode left anything.
    pub fn is_carried(&self) -> bool {
        self.episode.is_some()
    }

    /// Drops what belongs to a request: called when one begins.
    pub fn begin_request(&mut self) {
        self.request = None;
    }

    /// Drops everything: called when an episode begins.
    pub fn reset(&mut self) {
        *self = Self::default();
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Memory {{ request: {}, episode: {} }}",
            self.request.is_some(),
            self.episode.is_some()
        )
    }
}

/// A pruner in an episode: its name, and which of the entries of that name in its chain.
type Key = (String, usize);

/// One stream of steps: what its pruners carry from each to the next.
#[derive(Default)]
pub struct Episode {
    states: BTreeMap<Key, State>,
}

impl Episode {
    /// The memories of a step, one an entry of `chain`, as the last committed step left them.
    pub fn begin(&self, chain: &ResolvedChain) -> Vec<Memory> {
        let memory = |key| Memory { request: None, episode: self.states.get(&key).cloned() };
        keys(chain).into_iter().map(memory).collect()
    }

    /// Takes over what a step of `chain` that has ended carries.
    pub fn commit(&mut self, chain: &ResolvedChain, memories: Vec<Memory>) {
        for (key, memory) in keys(chain).into_iter().zip(memories) {
            match memory.episode {
                Some(state) => self.states.insert(key, state),
                None => self.states.remove(&key),
            };
        }
    }

    /// Begins anew: everything is dropped.
    pub fn reset(&mut self) {
        self.states.clear();
    }
}

impl fmt::Debug for Episode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.states.keys()).finish()
    }
}

fn keys(chain: &ResolvedChain) -> Vec<Key> {
    let names: Vec<&String> = chain.spec.stages.iter().map(|s| &s.pruner).collect();
    let nth = |i: usize| names[..i].iter().filter(|n| **n == names[i]).count();
    (0..names.len()).map(|i| (names[i].clone(), nth(i))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::ChainSpec;

    fn chain(text: &str) -> ResolvedChain {
        let spec = ChainSpec::parse(text).unwrap();
        ResolvedChain { entries: spec.stages.len(), spec, ..ResolvedChain::default() }
    }

    fn count(memory: &Memory) -> usize {
        memory.episode::<usize>().copied().unwrap_or(0)
    }

    #[test]
    fn a_step_that_is_not_committed_leaves_nothing() {
        let (mut episode, one) = (Episode::default(), chain("a"));
        let mut memories = episode.begin(&one);
        *memories[0].episode_or_default::<usize>() += 1;
        episode.commit(&one, memories);
        let mut dropped = episode.begin(&one);
        *dropped[0].episode_or_default::<usize>() += 10;
        assert_eq!(count(&dropped[0]), 11);
        assert_eq!(count(&episode.begin(&one)[0]), 1);
    }

    #[test]
    fn memory_is_found_by_pruner_whatever_the_chain() {
        let mut episode = Episode::default();
        let two = chain("a:keep=1,a:keep=2,b");
        let mut memories = episode.begin(&two);
        for (i, memory) in memories.iter_mut().enumerate() {
            *memory.episode_or_default::<usize>() = i + 1;
        }
        episode.commit(&two, memories);
        let other = chain("b,a:keep=0.5,c");
        assert_eq!(episode.begin(&other).iter().map(count).collect::<Vec<_>>(), [3, 1, 0]);
        let memories = episode.begin(&chain("c"));
        episode.commit(&chain("c"), memories);
        assert_eq!(episode.begin(&two).iter().map(count).collect::<Vec<_>>(), [1, 2, 3]);
        episode.reset();
        assert_eq!(episode.begin(&two).iter().map(count).sum::<usize>(), 0);
    }
}

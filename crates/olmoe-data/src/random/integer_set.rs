//! Python's `set` of integers: the hash table of CPython (`Objects/setobject.c`; checked with 3.11 and 3.12), for the order
//! in which a loop over the set goes through it.

const LINEAR_PROBES: usize = 9;
const PERTURB_SHIFT: u32 = 5;
const MIN_SIZE: usize = 8;

#[derive(Clone, Copy, PartialEq)]
enum Entry {
    Empty,
    /// Of a removed item: probes go on behind it, and an item added later can be put there.
    Removed,
    Item(u64),
}

/// A set of integers below 2^61 - 1, which are their own hashes in CPython; greater ones are kept, in another order than
/// CPython's.
#[derive(Clone)]
pub struct IntegerSet {
    /// A power of two of entries.
    table: Vec<Entry>,
    /// Entries that are not empty.
    filled: usize,
    items: usize,
}

impl IntegerSet {
    /// `set()`.
    pub fn new() -> IntegerSet {
        IntegerSet { table: vec![Entry::Empty; MIN_SIZE], filled: 0, items: 0 }
    }

    /// The number of items.
    pub fn len(&self) -> usize {
        self.items
    }

    /// Whether there is no item.
    pub fn is_empty(&self) -> bool {
        self.items == 0
    }

    /// Whether the set has an item.
    pub fn contains(&self, item: u64) -> bool {
        self.table[self.slot(item).0] == Entry::Item(item)
    }

    /// `add(item)`.
    pub fn insert(&mut self, item: u64) {
        let (slot, removed) = self.slot(item);
        if self.table[slot] == Entry::Item(item) {
            return;
        }
        self.items += 1;
        if let Some(removed) = removed {
            self.table[removed] = Entry::Item(item);
            return;
        }
        self.table[slot] = Entry::Item(item);
        self.filled += 1;
        // The table grows when three fifths of it are filled.
        if self.filled * 5 >= (self.table.len() - 1) * 3 {
            let least = if self.items > 50_000 { self.items * 2 } else { self.items * 4 };
            let mut size = MIN_SIZE;
            while size <= least {
                size *= 2;
            }
            let old = std::mem::replace(&mut self.table, vec![Entry::Empty; size]);
            self.filled = self.items;
            for entry in old {
                if let Entry::Item(item) = entry {
                    let (slot, _) = self.slot(item);
                    self.table[slot] = entry;
                }
            }
        }
    }

    /// `discard(item)`.
    pub fn remove(&mut self, item: u64) {
        let (slot, _) = self.slot(item);
        if self.table[slot] == Entry::Item(item) {
            self.table[slot] = Entry::Removed;
            self.items -= 1;
        }
    }

    /// The items in the order of a loop over the set.
    pub fn iter(&self) -> impl Iterator<Item = u64> {
        self.table.iter().filter_map(|entry| match entry {
            Entry::Item(item) => Some(*item),
            _ => None,
        })
    }

    /// Where an item is, or else the empty entry where it would be put, of which there always is one; and the last entry
    /// of a removed item on the way.
    fn slot(&self, item: u64) -> (usize, Option<usize>) {
        let mut removed = None;
        let mask = self.table.len() - 1;
        let mut at = item as usize & mask;
        let mut perturb = item;
        loop {
            let last = if at + LINEAR_PROBES <= mask { at + LINEAR_PROBES } else { at };
            for slot in at..=last {
                match self.table[slot] {
                    Entry::Empty => return (slot, removed),
                    Entry::Item(other) if other == item => return (slot, removed),
                    Entry::Item(_) => {}
                    Entry::Removed => removed = Some(slot),
                }
            }
            perturb >>= PERTURB_SHIFT;
            at = at.wrapping_mul(5).wrapping_add(1).wrapping_add(perturb as usize) & mask;
        }
    }
}

impl Default for IntegerSet {
    fn default() -> IntegerSet {
        IntegerSet::new()
    }
}

impl FromIterator<u64> for IntegerSet {
    /// `set(items)`.
    fn from_iter<I: IntoIterator<Item = u64>>(items: I) -> IntegerSet {
        let mut set = IntegerSet::new();
        items.into_iter().for_each(|item| set.insert(item));
        set
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Mersenne;

    #[test]
    fn loops_go_through_it_as_in_python() {
        // Python: r = random.Random(seed); s = set(r.sample(range(n), k)); then, `steps` times, an item is drawn and
        // removed if it is in the set, else added; list(s)
        for line in include_str!("integer_sets.txt").lines().filter(|line| !line.starts_with('#')) {
            let numbers: Vec<u64> = line.split(' ').map(|word| word.parse().unwrap()).collect();
            let [seed, population, count, steps] = numbers[..4] else { panic!("{line}") };
            let mut random = Mersenne::python(seed);
            let drawn = random.sample(population as usize, count as usize);
            let mut set: IntegerSet = drawn.into_iter().map(|item| item as u64).collect();
            for _ in 0..steps {
                let item = random.below(population);
                if set.contains(item) {
                    set.remove(item);
                } else {
                    set.insert(item);
                }
            }
            assert_eq!(set.iter().collect::<Vec<_>>(), numbers[4..], "{seed}");
            assert_eq!(set.len(), numbers.len() - 4);
            assert_eq!(set.is_empty(), numbers.len() == 4);
        }
    }
}

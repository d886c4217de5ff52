//! Connections by number: a number that belonged to one that has ended finds nothing.

/// Places that are used again and again.
#[derive(Debug)]
pub(super) struct Table<T> {
    places: Vec<Place<T>>,
    free: Vec<u32>,
}

#[derive(Debug)]
struct Place<T> {
    /// How often this place was given away.
    round: u32,
    value: Option<T>,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self { places: Vec::new(), free: Vec::new() }
    }
}

impl<T> Table<T> {
    /// Makes room for a value, which `put` brings.
    pub(super) fn reserve(&mut self) -> u64 {
        let index = self.free.pop().unwrap_or_else(|| {
            self.places.push(Place { round: 0, value: None });
            u32::try_from(self.places.len() - 1).unwrap_or(u32::MAX)
        });
        let round = self.places.get(index as usize).map_or(0, |place| place.round);
        u64::from(round) << 32 | u64::from(index)
    }

    /// Takes a value out, to be put back or released.
    pub(super) fn take(&mut self, number: u64) -> Option<T> {
        self.place(number)?.value.take()
    }

    pub(super) fn put(&mut self, number: u64, value: T) {
        if let Some(place) = self.place(number) {
            place.value = Some(value);
        }
    }

    /// Ends a number.
    pub(super) fn release(&mut self, number: u64) {
        let Some(place) = self.place(number) else { return };
        // The top bit stays free for what is no connection.
        place.round = (place.round + 1) & 0x7fff_ffff;
        place.value = None;
        self.free.push(index(number));
    }

    /// All numbers in use.
    pub(super) fn numbers(&self) -> Vec<u64> {
        let used = self.places.iter().enumerate().filter(|(_, place)| place.value.is_some());
        used.map(|(index, place)| u64::from(place.round) << 32 | index as u64).collect()
    }

    pub(super) fn get(&self, number: u64) -> Option<&T> {
        let place = self.places.get(index(number) as usize)?;
        place.value.as_ref().filter(|_| place.round == round(number))
    }

    pub(super) fn get_mut(&mut self, number: u64) -> Option<&mut T> {
        self.place(number)?.value.as_mut()
    }

    pub(super) fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    fn place(&mut self, number: u64) -> Option<&mut Place<T>> {
        self.places.get_mut(index(number) as usize).filter(|place| place.round == round(number))
    }
}

fn index(number: u64) -> u32 {
    u32::try_from(number & 0xffff_ffff).unwrap_or(u32::MAX)
}

fn round(number: u64) -> u32 {
    u32::try_from(number >> 32).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_number_finds_nothing() {
        let mut table = Table::default();
        let first = table.reserve();
        table.put(first, "a");
        assert_eq!((table.get(first), table.len()), (Some(&"a"), 1));
        table.release(first);
        let second = table.reserve();
        table.put(second, "b");
        assert_ne!(first, second);
        assert_eq!((table.take(first), table.get(first), table.len()), (None, None, 1));
        table.release(first);
        assert_eq!(table.numbers(), [second]);
        assert_eq!(table.take(second), Some("b"));
    }
}

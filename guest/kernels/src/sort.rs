//! Sorting in place: quicksort with median of three, insertion sort for short pieces, heapsort where quicksort
//! goes deep.

/// Pieces up to this length are sorted by insertion.
const SHORT: usize = 24;
/// Elements between two polls.
const POLL_EVERY: usize = 4096;

/// Sorts ascending; calls `poll` after every few thousand elements moved or looked at.
pub fn sort(values: &mut [u64], poll: &mut impl FnMut()) {
    let depth = 2 * (usize::BITS - values.len().leading_zeros());
    sort_piece(values, depth, &mut 0, poll);
}

fn sort_piece(mut values: &mut [u64], mut depth: u32, work: &mut usize, poll: &mut impl FnMut()) {
    while values.len() > SHORT {
        if depth == 0 {
            return heap_sort(values, poll);
        }
        depth -= 1;
        let middle = partition(values, work, poll);
        let (left, right) = values.split_at_mut(middle);
        // Recursing into the shorter side bounds the stack by the logarithm of the length.
        let (shorter, longer) = if left.len() < right.len() { (left, right) } else { (right, left) };
        sort_piece(shorter, depth, work, poll);
        values = longer;
    }
    *work += values.len();
    insertion_sort(values);
    if *work >= POLL_EVERY {
        *work = 0;
        poll();
    }
}

/// Hoare's partition; every element left of the result is at most every element from there on. Neither side is empty:
/// of the three that the pivot is the median of, one behind the first is no greater, and one before the last no less.
fn partition(values: &mut [u64], work: &mut usize, poll: &mut impl FnMut()) -> usize {
    let last = values.len() - 1;
    let (a, b, c) = (values[0], values[last / 2], values[last]);
    let pivot = a.max(b).min(a.min(b).max(c));
    let (mut low, mut high) = (0, last);
    loop {
        let from = low;
        while values[low] < pivot {
            low += 1;
        }
        while values[high] > pivot {
            high -= 1;
        }
        if low >= high {
            return low;
        }
        values.swap(low, high);
        low += 1;
        high -= 1;
        *work += low - from + 1;
        if *work >= POLL_EVERY {
            *work = 0;
            poll();
        }
    }
}

fn insertion_sort(values: &mut [u64]) {
    for i in 1..values.len() {
        let value = values[i];
        let mut at = i;
        while at > 0 && values[at - 1] > value {
            values[at] = values[at - 1];
            at -= 1;
        }
        values[at] = value;
    }
}

fn heap_sort(values: &mut [u64], poll: &mut impl FnMut()) {
    for root in (0..values.len() / 2).rev() {
        sift_down(values, root);
        if root % (POLL_EVERY / 16) == 0 {
            poll();
        }
    }
    for end in (1..values.len()).rev() {
        values.swap(0, end);
        sift_down(&mut values[..end], 0);
        if end % (POLL_EVERY / 16) == 0 {
            poll();
        }
    }
}

fn sift_down(values: &mut [u64], mut root: usize) {
    loop {
        let mut child = 2 * root + 1;
        if child >= values.len() {
            return;
        }
        if child + 1 < values.len() && values[child] < values[child + 1] {
            child += 1;
        }
        if values[root] >= values[child] {
            return;
        }
        values.swap(root, child);
        root = child;
    }
}

#[cfg(test)]
mod tests {
    use super::{heap_sort, sort};
    use crate::random::SplitMix64;

    /// Inputs of all shapes that break quicksorts: random, few values, sorted, reversed, sawtooth.
    fn inputs() -> impl Iterator<Item = Vec<u64>> {
        [0, 1, 2, 3, 24, 25, 26, 27, 100, 1000, 20_000].into_iter().flat_map(|length: u64| {
            let mut random = SplitMix64::new(length);
            let mut of = |value: &dyn Fn(u64, u64) -> u64| (0..length).map(|i| value(i, random.next_u64())).collect();
            [
                of(&|_, r| r),
                of(&|_, r| r % 3),
                of(&|i, _| i),
                of(&|i, _| length - i),
                of(&|i, _| i % 7),
                of(&|_, _| 5),
                of(&|i, _| i.abs_diff(length / 2)),
            ]
        })
    }

    #[test]
    fn sorts_everything() {
        for input in inputs() {
            let mut expected = input.clone();
            expected.sort_unstable();
            let (mut by_sort, mut by_heap) = (input.clone(), input);
            sort(&mut by_sort, &mut || {});
            assert!(by_sort == expected, "sort, {} values", expected.len());
            heap_sort(&mut by_heap, &mut || {});
            assert!(by_heap == expected, "heap_sort, {} values", expected.len());
        }
    }

    /// An interrupt must not wait for the whole sort.
    #[test]
    fn polls_all_the_time() {
        let mut random = SplitMix64::new(1);
        let mut values: Vec<u64> = (0..100_000).map(|_| random.next_u64()).collect();
        let mut polls = 0;
        sort(&mut values, &mut || polls += 1);
        assert!(polls > 200, "{polls} polls");
    }
}

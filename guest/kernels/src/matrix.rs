//! Matrix product in double precision: multiplications and additions in a fixed order, so that every IEEE 754
//! processor gives the same bits.

/// Adds `left` × `right` to `sum`, all `n` × `n` in row order; calls `poll` after every row or part of one.
///
/// # Panics
/// If a slice has not `n` × `n` elements.
pub fn multiply_add(sum: &mut [f64], left: &[f64], right: &[f64], n: usize, poll: &mut impl FnMut()) {
    assert!(sum.len() == n * n && left.len() == n * n && right.len() == n * n, "three matrices of {n} × {n}");
    if n == 0 {
        return;
    }
    for (sum_row, left_row) in sum.chunks_exact_mut(n).zip(left.chunks_exact(n)) {
        for (k, (&factor, right_row)) in left_row.iter().zip(right.chunks_exact(n)).enumerate() {
            // Along the rows of both, which vectorises without changing the order of any sum.
            for (s, &r) in sum_row.iter_mut().zip(right_row) {
                *s += factor * r;
            }
            if k % 128 == 127 {
                poll();
            }
        }
        poll();
    }
}

#[cfg(test)]
mod tests {
    use super::multiply_add;

    #[test]
    fn multiplies() {
        let mut sum = [100.0, 0.0, 0.0, 0.0];
        multiply_add(&mut sum, &[1.0, 2.0, 3.0, 4.0], &[5.0, 6.0, 7.0, 8.0], 2, &mut || {});
        assert_eq!(sum, [119.0, 22.0, 43.0, 50.0]);
    }

    /// Against the definition, on small integers, where the sums are exact in any order.
    #[test]
    fn agrees_with_the_definition() {
        const N: usize = 37;
        let matrix = |seed: usize| -> Vec<f64> { (0..N * N).map(|i| ((i * seed) % 19) as f64 - 9.0).collect() };
        let (left, right, mut sum) = (matrix(7), matrix(11), vec![0.0; N * N]);
        multiply_add(&mut sum, &left, &right, N, &mut || {});
        for (i, found) in sum.iter().enumerate() {
            let expected: f64 = (0..N).map(|k| left[i / N * N + k] * right[k * N + i % N]).sum();
            assert_eq!(*found, expected, "element {i}");
        }
    }
}

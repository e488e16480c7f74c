//! The few statistics that the measurements use.

/// The value below which `share` (0 to 1) of the samples lie, by nearest rank; 0 without samples.
pub fn quantile(samples: &[f64], share: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (share * sorted.len() as f64).ceil().max(1.0) as usize;
    sorted.get(rank.min(sorted.len()).wrapping_sub(1)).copied().unwrap_or(0.0)
}

/// The middle of the samples; 0 without any.
pub fn median(samples: &[f64]) -> f64 {
    quantile(samples, 0.5)
}

/// The largest sample; 0 without any.
pub fn largest(samples: &[f64]) -> f64 {
    samples.iter().copied().fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_by_nearest_rank() {
        let samples: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!((median(&samples), quantile(&samples, 0.99), largest(&samples)), (50.0, 99.0, 100.0));
        assert_eq!((median(&[7.0]), quantile(&[7.0], 0.99)), (7.0, 7.0));
        assert_eq!((median(&[]), largest(&[])), (0.0, 0.0));
    }
}

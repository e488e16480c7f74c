//! Tables for terminals: columns as wide as what is in them.

use std::fmt::Write as _;

/// Rows under a heading. All have as many cells as the heading.
pub struct Table<const N: usize> {
    rows: Vec<[String; N]>,
}

impl<const N: usize> Table<N> {
    /// An empty one with this heading.
    pub fn new(heading: [&str; N]) -> Self {
        Table { rows: vec![heading.map(str::to_owned)] }
    }

    /// One row more.
    pub fn row(&mut self, cells: [String; N]) {
        self.rows.push(cells);
    }

    /// Whether there is nothing but the heading.
    pub fn is_empty(&self) -> bool {
        self.rows.len() == 1
    }
}

impl<const N: usize> std::fmt::Display for Table<N> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut widths = [0; N];
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = cell.chars().count().max(*width);
            }
        }
        for row in &self.rows {
            let mut line = String::new();
            for (width, cell) in widths.iter().zip(row) {
                write!(line, "{cell:<width$}  ")?;
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_what_is_in_them() {
        let mut table = Table::new(["A", "LONG", "C"]);
        assert!(table.is_empty());
        table.row(["größer".into(), "x".into(), String::new()]);
        assert_eq!(table.to_string(), "A       LONG  C\ngrößer  x\n");
    }
}

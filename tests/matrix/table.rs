//! The cases as tables: every single failure in full, and the double ones as matrices, a cell for each pair.

use std::time::Duration;

use super::case::{Case, Row};
use super::fault::Fault;

/// What the cells mean.
pub const LEGEND: &str = "`P`, `B`: the primary, the backup goes on alone; `=`: the pair goes on as it is; `→`: the VM was moved to where its clients are; `✂`: its clients are cut off; `W`: \
nobody goes on before the repair; `L`: lost with both its hosts, and booted by nobody. Then the pause that the client saw, and after what time the VM was protected again (`-`: not before the \
repair; nothing: it was protected all the time), in ms.";

/// A case's cell.
fn cell(row: &Row) -> String {
    let outcome = &row.outcome;
    let mut text = match outcome {
        _ if outcome.starts_with("waits") => return "W".into(),
        _ if outcome.starts_with("lost") => return "L".into(),
        _ if outcome.starts_with("the primary") => "P",
        _ if outcome.starts_with("the backup") => "B",
        _ if outcome.starts_with("the spare") => "S",
        _ if outcome.starts_with("moved") => "",
        _ => "=",
    }
    .to_owned();
    if outcome.contains("moved") {
        text.push('→');
    }
    let ms = |time: Option<Duration>| time.map_or("-".into(), |time| time.as_millis().to_string());
    text += &row.pause.map_or("✂".into(), |pause| format!(" {}", pause.as_millis()));
    if row.protected != Some(Duration::ZERO) {
        text += &format!(", {}", ms(row.protected));
    }
    text
}

/// Prints the matrix of the cases that `pair` takes for a pair.
fn matrix(rows: &[Row], pair: impl Fn(Case) -> Option<(Fault, Fault)>) {
    let pairs: Vec<((Fault, Fault), &Row)> = rows.iter().filter_map(|row| Some((pair(row.case)?, row))).collect();
    let (mut down, mut across): (Vec<Fault>, Vec<Fault>) = (Vec::new(), Vec::new());
    for ((one, other), _) in &pairs {
        if !down.contains(one) {
            down.push(*one);
        }
        if !across.contains(other) {
            across.push(*other);
        }
    }
    across.sort_by_key(|fault| super::fault::all().iter().position(|known| known == fault));
    let line = |cells: Vec<String>| println!("| {} |", cells.join(" | "));
    line([String::new()].into_iter().chain(across.iter().map(Fault::to_string)).collect());
    line((0..=across.len()).map(|_| "---".into()).collect());
    for one in down {
        let of = |other: &Fault| pairs.iter().find(|(pair, _)| *pair == (one, *other)).map(|(_, row)| cell(row));
        line([one.to_string()].into_iter().chain(across.iter().map(|other| of(other).unwrap_or_default())).collect());
    }
}

/// The head of the table of cases in full.
pub const HEAD: &str =
    "| failure | pause, ms | protection restored after, ms | outcome | whole again after the repair, ms |
| --- | --- | --- | --- | --- |";

/// Prints these cases.
pub fn print(rows: &[Row]) {
    println!("{HEAD}");
    rows.iter().filter(|row| matches!(row.case, Case::One(_))).for_each(|row| println!("{row}"));
    println!("\n{LEGEND}\n\nTwo at the same moment:\n");
    matrix(rows, |case| match case {
        Case::Both(one, other) => Some((one, other)),
        _ => None,
    });
    println!("\nThe second (columns) when what came of the first is over, by the parts that the machines have then:\n");
    matrix(rows, |case| match case {
        Case::Then(first, second) => Some((first, second)),
        _ => None,
    });
}

//! What comes of a benchmark: rows of figures held against their targets, and the machine they were measured on; as a table
//! for people, as JSON for programs.

use std::fmt;

use serde::Serialize;

/// What a figure is to be.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// This or more.
    AtLeast(f64),
    /// This or less.
    AtMost(f64),
}

impl Target {
    /// Whether `value` meets it.
    pub fn met(self, value: f64) -> bool {
        match self {
            Target::AtLeast(least) => value >= least,
            Target::AtMost(most) => value <= most,
        }
    }
}

/// One figure.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// The measurement it comes from.
    pub measurement: &'static str,
    /// What was measured.
    pub what: String,
    /// The figure.
    pub value: f64,
    /// Its unit; empty for ratios.
    pub unit: &'static str,
    /// What it is to be; `None`: reported for comparison.
    pub target: Option<Target>,
    /// Whether it is.
    pub met: Option<bool>,
    /// Where it comes from: sample counts, other quantiles, what it is made of.
    pub note: String,
}

impl Row {
    /// A figure without a target; see [`target`](Self::target) and [`note`](Self::note).
    pub fn new(measurement: &'static str, what: impl Into<String>, value: f64, unit: &'static str) -> Self {
        Row { measurement, what: what.into(), value, unit, target: None, met: None, note: String::new() }
    }

    /// Holds it against a target.
    pub fn target(mut self, target: Target) -> Self {
        self.target = Some(target);
        self.met = Some(target.met(self.value));
        self
    }

    /// Says where it comes from.
    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.note = note.into();
        self
    }
}

/// Where and when it was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Setting {
    /// The processor's name.
    pub cpu: String,
    /// Processors that this process may use.
    pub cores: usize,
    /// The kernel's release.
    pub kernel: String,
    /// Which module serves KVM.
    pub kvm: String,
    /// Seconds since 1970, UTC.
    pub measured_at_s: u64,
    /// The same for people.
    pub date: String,
    /// Processes that waited for a processor in the minute before: above 0 the figures are noisy.
    pub load: String,
    /// Version of lockstep.
    pub version: &'static str,
    /// A short run: fewer samples.
    pub quick: bool,
    /// Built without optimisation: the figures mean nothing.
    pub debug_build: bool,
}

/// All of it.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Where and when.
    pub setting: Setting,
    /// The figures.
    pub rows: Vec<Row>,
    /// Measurements that could not be taken, and why.
    pub failed: Vec<(String, String)>,
}

fn first_line(path: &str) -> Option<String> {
    Some(std::fs::read_to_string(path).ok()?.lines().next()?.trim().to_owned())
}

impl Setting {
    /// This machine, now.
    pub fn here(quick: bool) -> Self {
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let modules = std::fs::read_to_string("/proc/modules").unwrap_or_default();
        let kvm = ["kvm_intel", "kvm_amd", "kvm_pvm"].into_iter().filter(|name| {
            modules.lines().any(|line| line.split(' ').next() == Some(name))
                || std::path::Path::new("/sys/module").join(name).exists()
        });
        let kvm: Vec<_> = kvm.collect();
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs());
        Setting {
            cpu: model.map_or_else(|| "unknown".into(), |(_, name)| name.to_owned()),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            kernel: first_line("/proc/sys/kernel/osrelease").unwrap_or_else(|| "unknown".into()),
            kvm: if kvm.is_empty() { "unknown".into() } else { kvm.join(", ") },
            measured_at_s: now,
            date: date(now),
            load: first_line("/proc/loadavg").and_then(|l| Some(l.split(' ').next()?.to_owned())).unwrap_or_default(),
            version: env!("CARGO_PKG_VERSION"),
            quick,
            debug_build: cfg!(debug_assertions),
        }
    }
}

/// The UTC day and minute of a time (Howard Hinnant's `civil_from_days`).
fn date(unix_s: u64) -> String {
    let days = unix_s / 86_400 + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let minutes = unix_s % 86_400 / 60;
    format!("{year}-{month:02}-{day:02} {:02}:{:02} UTC", minutes / 60, minutes % 60)
}

/// Three significant digits, without an exponent.
fn figure(value: f64) -> String {
    match value.abs() {
        0.0 => "0".into(),
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

fn with_unit(value: f64, unit: &str) -> String {
    format!("{} {unit}", figure(value)).trim_end().to_owned()
}

impl Row {
    /// What, target, figure, met.
    fn cells(&self) -> [String; 4] {
        let target = match self.target {
            Some(Target::AtLeast(least)) => format!("≥ {}", with_unit(least, self.unit)),
            Some(Target::AtMost(most)) => format!("≤ {}", with_unit(most, self.unit)),
            None => "–".into(),
        };
        let met = self.met.map_or("", |met| if met { "yes" } else { "NO" });
        [self.what.clone(), target, with_unit(self.value, self.unit), met.into()]
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "lockstep {} on {}, {} cores, Linux {}, KVM: {}",
            self.version, self.cpu, self.cores, self.kernel, self.kvm
        )?;
        let quick = if self.quick { "; quick run, few samples" } else { "" };
        writeln!(f, "{}; load before: {}{quick}", self.date, self.load)?;
        if self.debug_build {
            writeln!(f, "BUILT WITHOUT OPTIMISATION: these figures mean nothing; use cargo run --release")?;
        }
        Ok(())
    }
}

impl Report {
    /// The same as a table in Markdown, for documents.
    pub fn markdown(&self) -> String {
        let mut text =
            format!("{}\n| what | target | measured | met | |\n| --- | --- | --- | --- | --- |\n", self.setting);
        for row in &self.rows {
            let [what, target, measured, met] = row.cells();
            text += &format!("| {} | {target} | {measured} | {met} | {} |\n", what.trim_start(), row.note);
        }
        for (name, why) in &self.failed {
            text += &format!("\n{name}: not measured: {why}\n");
        }
        text
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.setting)?;
        let rows: Vec<[String; 4]> = self.rows.iter().map(Row::cells).collect();
        let heads = ["what", "target", "measured", "met"];
        let width = |column: usize| {
            rows.iter().map(|row| row[column].chars().count()).chain([heads[column].len()]).max().unwrap_or(0)
        };
        let widths = [width(0), width(1), width(2), width(3)];
        writeln!(f)?;
        let mut line = |cells: [&str; 4], note: &str| {
            let [what, target, measured, met] = cells;
            let text = format!(
                "{what:<w0$}  {target:>w1$}  {measured:>w2$}  {met:<w3$}  {note}",
                w0 = widths[0],
                w1 = widths[1],
                w2 = widths[2],
                w3 = widths[3]
            );
            writeln!(f, "{}", text.trim_end())
        };
        line(heads, "")?;
        for (row, cells) in self.rows.iter().zip(&rows) {
            line(cells.each_ref().map(String::as_str), &row.note)?;
        }
        for (name, why) in &self.failed {
            writeln!(f, "{name}: not measured: {why}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        assert_eq!(date(0), "1970-01-01 00:00 UTC");
        assert_eq!(date(951_827_696), "2000-02-29 12:34 UTC");
        assert_eq!(date(1_795_382_122), "2026-11-22 21:15 UTC");
    }

    #[test]
    fn a_target_is_met_or_not() {
        assert!(Target::AtLeast(0.95).met(0.95) && !Target::AtLeast(0.95).met(0.949));
        assert!(Target::AtMost(2.0).met(2.0) && !Target::AtMost(2.0).met(2.1));
    }
}

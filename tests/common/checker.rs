//! Holds together what was typed, what the console showed, and the guest's own account of its input (application
//! `transcript`): every line answered exactly once and in order, every tick line once and in order, no contradiction.

use lockstep_kernels::fnv::Fnv1a;

/// How far a transcript has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Lines answered.
    pub lines: u64,
    /// Tick lines.
    pub ticks: u64,
    /// Whether the guest has closed its account.
    pub ended: bool,
}

/// Checks a transcript, or as much of it as there is, against the lines typed. The last line may still be under way.
pub fn check_transcript(output: &[u8], typed: &[String]) -> Result<Progress, String> {
    let mut progress = Progress::default();
    let mut sum = Fnv1a::default();
    let mut clock_ms = 0;
    let text = std::str::from_utf8(output).map_err(|error| format!("not text: {error}"))?;
    let whole = text.rfind("\r\n").map_or(0, |end| end + 2);
    for (number, line) in text[..whole].split_terminator("\r\n").enumerate() {
        let wrong = |what: &str| Err(format!("line {} of the console: {what}: {line:?}", number + 1));
        let account = |lines: u64, sum: Fnv1a| format!("lines={lines} sum={:016x}", sum.value());
        if number == 0 {
            if line != "transcript" {
                return wrong("not the greeting");
            }
        } else if progress.ended {
            return wrong("after the end");
        } else if let Some(tick) = line.strip_prefix("tick ") {
            progress.ticks += 1;
            let Some((ms, rest)) =
                tick.strip_prefix(&format!("{} ms=", progress.ticks)).and_then(|t| t.split_once(' '))
            else {
                return wrong(&format!("tick {} was next", progress.ticks));
            };
            let Some(ms) = ms.parse().ok().filter(|&ms: &u64| ms >= clock_ms) else {
                return wrong(&format!("the clock stood at {clock_ms} ms before"));
            };
            clock_ms = ms;
            let expected = account(progress.lines, sum);
            if rest != expected {
                return wrong(&format!("expected {expected}"));
            }
        } else if let Some(end) = line.strip_prefix("end ") {
            progress.ended = true;
            let expected = account(progress.lines, sum);
            if end != expected {
                return wrong(&format!("expected {expected}"));
            }
        } else {
            let Some(typed) = typed.get(progress.lines as usize) else { return wrong("more than was typed") };
            progress.lines += 1;
            typed.bytes().for_each(|byte| sum.push(byte));
            sum.push(b'\n');
            let expected = format!("{}: {typed} sum={:016x}", progress.lines, sum.value());
            if line != expected {
                return wrong(&format!("expected {expected:?}"));
            }
        }
    }
    Ok(progress)
}

//! What the numbers depend on besides the servers: facts of the machine, and the congestion control.
//!
//! Who calls it: `main` sets the congestion control, `report` prints the facts.
//! What it calls: `/proc`, and `git` and `date` for two facts.
//! What it never does: leave the congestion control changed.

use std::process::Command;

use crate::Result;
use crate::process::{self, TICKS_PER_SECOND};

const CONGESTION: &str = "/proc/sys/net/ipv4/tcp_congestion_control";

/// Congestion control of the machine for as long as this lives. Peers that are compared under different ones,
/// or under bbr on loopback, are compared in their pacing.
pub(crate) struct Congestion {
    name: &'static str,
    before: String,
}

impl Congestion {
    pub(crate) fn set(name: &'static str) -> Result<Self> {
        let failed = |error| format!("cannot set {CONGESTION} to {name} (root is needed): {error}");
        let before = std::fs::read_to_string(CONGESTION).map_err(failed)?.trim().to_owned();
        std::fs::write(CONGESTION, name).map_err(failed)?;
        Ok(Self { name, before })
    }

    /// What holds, and what held before the run and holds after it.
    pub(crate) fn description(&self) -> String {
        format!("{} (set for the run, {} before and after)", self.name, self.before)
    }
}

impl Drop for Congestion {
    fn drop(&mut self) {
        if let Err(error) = std::fs::write(CONGESTION, &self.before) {
            eprintln!(
                "portolan-bench: {CONGESTION} stays {}, {} was there before: {error}",
                self.name, self.before
            );
        }
    }
}

/// Name and value of each fact that is known. Called before the first load, so that the load is others'.
pub(crate) fn facts() -> Vec<(&'static str, String)> {
    let cores = std::thread::available_parallelism().map(|count| count.to_string()).ok();
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").ok();
    let commit = said_by(Command::new("git").args(["describe", "--always", "--dirty", "--abbrev=12"]));
    let date = said_by(Command::new("date").args(["-u", "+%Y-%m-%d"]));
    let load = std::fs::read_to_string("/proc/loadavg").ok();
    let load = load.and_then(|text| Some(text.split_whitespace().next()?.to_owned()));
    let facts = [
        ("cores", cores),
        ("processor", processor()),
        ("kernel", kernel),
        ("load before the run", load),
        ("date", date),
        ("commit", commit),
    ];
    facts.into_iter().filter_map(|(name, value)| Some((name, value?.trim().to_owned()))).collect()
}

/// Seconds since the start of the machine that its cores did not idle (proc(5), `/proc/stat`).
pub(crate) fn busy_seconds() -> f64 {
    let text = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let fields = text.lines().next().unwrap_or_default().split_whitespace().skip(1);
    let ticks: Vec<f64> = fields.map(|field| field.parse().unwrap_or(0.0)).collect();
    // user nice system (idle iowait) irq softirq steal; guest is within user.
    [0, 1, 2, 5, 6, 7].iter().filter_map(|place| ticks.get(*place)).sum::<f64>() / TICKS_PER_SECOND
}

/// CPU seconds of this program.
pub(crate) fn own_seconds() -> f64 {
    process::cpu_seconds_of(std::process::id())
}

fn processor() -> Option<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn said_by(command: &mut Command) -> Option<String> {
    let output = command.output().ok().filter(|output| output.status.success())?;
    String::from_utf8(output.stdout).ok()
}

//! A program under measurement: started in a process group of its own, its CPU time read, stopped.
//!
//! Who calls it: `servers` starts, `measure` reads the CPU time.
//! What it calls: `/proc`, and signals to the process and its descendants by their ids.
//! What it never does: touch a process that it did not start.

use std::fs::File;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::Result;

/// Clock ticks of `/proc/<pid>/stat` in a second: USER_HZ, 100 on every architecture Debian has.
pub(crate) const TICKS_PER_SECOND: f64 = 100.0;

/// Lines of a log that a failure shows.
const LOG_LINES_SHOWN_MAX: usize = 10;

/// A running program and all that it forks. Killed when dropped.
pub(crate) struct Program {
    name: String,
    child: Child,
    log: PathBuf,
}

/// One process as `/proc` shows it; ticks include the children it has waited for.
struct Stat {
    pid: i32,
    parent: i32,
    group: i32,
    ticks: u64,
}

impl Program {
    /// Starts `command` with both outputs in a log file in `folder`.
    pub(crate) fn start(name: &str, command: &mut Command, folder: &Path) -> Result<Self> {
        let log = folder.join(format!("{name}.log"));
        let file = File::create(&log)?;
        let child = command
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .map_err(|error| format!("cannot start {:?}: {error}", command.get_program()))?;
        Ok(Self { name: name.to_owned(), child, log })
    }

    /// `Err` when the program has ended.
    pub(crate) fn check_alive(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => Err(format!("{} ended with {status}{}", self.name, self.log_end()).into()),
        }
    }

    /// User and system seconds of the program, its descendants and the children they have waited for.
    pub(crate) fn cpu_seconds(&self) -> f64 {
        let ticks: u64 = self.family().iter().map(|stat| stat.ticks).sum();
        ticks as f64 / TICKS_PER_SECOND
    }

    /// The last lines of the log, each on a line of its own.
    pub(crate) fn log_end(&self) -> String {
        let bytes = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<_> = text.lines().collect();
        let shown = &lines[lines.len().saturating_sub(LOG_LINES_SHOWN_MAX)..];
        shown.iter().map(|line| format!("\n  {}: {line}", self.name)).collect()
    }

    fn id(&self) -> i32 {
        i32::try_from(self.child.id()).expect("a process id is positive and fits pid_t")
    }

    /// The process, its group, and whoever descends from them: some servers leave the group when they fork.
    fn family(&self) -> Vec<Stat> {
        let own = self.id();
        let (mut family, mut others): (Vec<_>, Vec<_>) =
            all_processes().into_iter().partition(|stat| stat.pid == own || stat.group == own);
        loop {
            let (children, rest): (Vec<_>, Vec<_>) =
                others.into_iter().partition(|stat| family.iter().any(|member| member.pid == stat.parent));
            if children.is_empty() {
                return family;
            }
            family.extend(children);
            others = rest;
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let family = self.family();
        // A process that has ended meanwhile is what we want.
        if let Some(group) = Pid::from_raw(self.id()) {
            kill_process_group(group, Signal::KILL).ok();
        }
        for pid in family.iter().filter_map(|stat| Pid::from_raw(stat.pid)) {
            kill_process(pid, Signal::KILL).ok();
        }
        self.child.wait().ok();
    }
}

/// User and system seconds of a process and the children it has waited for; 0 when it is gone.
pub(crate) fn cpu_seconds_of(pid: u32) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    parse(0, &text).map_or(0.0, |stat| stat.ticks as f64 / TICKS_PER_SECOND)
}

fn all_processes() -> Vec<Stat> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            // A process may end between the listing and here.
            parse(pid, &std::fs::read_to_string(entry.path().join("stat")).ok()?)
        })
        .collect()
}

/// `/proc/<pid>/stat`, see proc(5). The name in parentheses may hold anything, so the last one ends it.
fn parse(pid: i32, text: &str) -> Option<Stat> {
    let (_, rest) = text.rsplit_once(") ")?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let ticks = fields.get(11..15)?.iter().map(|field| field.parse::<u64>().unwrap_or(0)).sum();
    Some(Stat { pid, parent: fields.get(1)?.parse().ok()?, group: fields.get(2)?.parse().ok()?, ticks })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_and_blanks_does_not_shift_the_fields() {
        assert!(parse(1, "1 (x").is_none());
        assert!(parse(1, "1 (x) S 1 2").is_none());
        let stat = parse(7, "7 (a ) S 9) R 3 4 5 6 7 8 9 10 11 12 100 20 3 4 20 0").unwrap();
        assert_eq!((stat.parent, stat.group, stat.ticks), (3, 4, 127));
    }
}

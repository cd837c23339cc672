//! `portolan-bench`: measures Portolan beside its peers on one machine and prints one table.
//!
//! Who calls it: a developer, as root, before and after a change that may cost speed.
//! What it calls: `servers` to start what is measured, `data` for the files, `measure` for the rounds.
//! What it never does: judge a number, or leave a process, a file or a kernel setting behind.

mod client;
mod data;
mod interrupt;
mod machine;
mod measure;
mod process;
mod report;
mod servers;

use std::error::Error;
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use clap::builder::PossibleValuesParser;

use data::Sample;
use machine::Congestion;
use measure::Plan;
use servers::{ENTRANTS, Ground};

/// Any failure, as a sentence that names the server and what it answered.
pub(crate) type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// Where the data lies: a tmpfs, so that no disk is measured.
const WORK_PARENT: &str = "/dev/shm";

/// Measure Portolan beside vsftpd and ProFTPD's mod_proxy.
///
/// Each round downloads one large file, uploads one large file and downloads many small files over several
/// sessions, from each server in turn, in plain FTP over loopback. Prints a Markdown table with the medians to
/// standard output and to a file. The peers are fetched as Debian packages and run from a work folder in
/// /dev/shm, nothing is installed. Needs root, Debian's package tools and about 3 GiB of memory with the
/// default sizes. The kernel's congestion control is set to cubic for the time of the run. Exit status: 0
/// measured, 1 something failed, 64 wrong arguments.
#[derive(Parser)]
#[command(version, name = "portolan-bench")]
struct Arguments {
    /// Rounds; the table shows medians over them.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=50))]
    rounds: u32,
    /// Size of the large file.
    #[arg(long, value_name = "MIB", default_value_t = 1024, value_parser = clap::value_parser!(u64).range(1..=65_536))]
    size_mib: u64,
    /// Number of small files.
    #[arg(long, value_name = "COUNT", default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    files: u32,
    /// Sessions that download the small files side by side.
    #[arg(long, value_name = "COUNT", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=100))]
    sessions: u32,
    /// Measure these servers only.
    #[arg(long, value_name = "NAME", num_args = 1.., value_parser = PossibleValuesParser::new(servers::names()))]
    only: Vec<String>,
    /// File that the table is written to as well; its folder is made if missing.
    #[arg(long, value_name = "FILE", default_value = "bench-results/latest.md")]
    out: PathBuf,
    /// Folder with portolan, portolan-agent and portolan-frontend [default: the folder of this program].
    #[arg(long, value_name = "DIR")]
    bin_dir: Option<PathBuf>,
}

fn main() -> ExitCode {
    let arguments = match portolan_process::arguments::<Arguments>() {
        Ok(arguments) => arguments,
        Err(status) => return status,
    };
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("portolan-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    interrupt::watch()?;
    let plan = Plan {
        rounds: arguments.rounds,
        bytes: arguments.size_mib << 20,
        files: arguments.files,
        sessions: arguments.sessions,
    };
    let mut facts = machine::facts();
    // A fault of --out shows before the measuring, not after it.
    write_out(&arguments.out, "")?;
    // Dropped in the opposite order: the servers first, then their folder, then the kernel's setting.
    let congestion = Congestion::set("cubic")?;
    let work = work_folder()?;
    progress(format_args!("making {} files and one of {} MiB", plan.files, arguments.size_mib));
    let sample = Sample::make(&work.path().join("sample"), plan.bytes, plan.files)?;

    let entrants: Vec<_> = ENTRANTS
        .iter()
        .filter(|entrant| arguments.only.is_empty() || arguments.only.iter().any(|name| name == entrant.name))
        .collect();
    progress(format_args!("fetching the peers' packages"));
    let packages: Vec<&str> = entrants.iter().flat_map(|entrant| entrant.packages).copied().collect();
    let mut ground = Ground::new(work.path(), bin_dir(arguments)?, &packages)?;
    let mut running = Vec::new();
    for entrant in entrants {
        progress(format_args!("starting {}", entrant.name));
        let server = ground.start(entrant, &sample)?;
        progress(format_args!("verifying {}", entrant.name));
        measure::verify(&server, &sample, &plan).map_err(|error| server.with_logs(error))?;
        running.push(server);
    }
    let results = measure::rounds(&running, &sample, &plan)?;
    facts.push(("congestion control", congestion.description()));
    facts.push(("peers", ground.versions().join(", ")));
    facts.retain(|(_, value)| !value.is_empty());
    let text = report::render(&plan, &running, &results, &facts);
    print!("{text}");
    write_out(&arguments.out, &text)
}

/// A line for who watches; silent when standard error is a file.
pub(crate) fn progress(line: std::fmt::Arguments<'_>) {
    if std::io::stderr().is_terminal() {
        eprintln!("portolan-bench: {line}");
    }
}

fn work_folder() -> Result<tempfile::TempDir> {
    use std::os::unix::fs::PermissionsExt as _;
    // Servers that drop their privileges must still be able to walk to their stores.
    Ok(tempfile::Builder::new()
        .prefix("portolan-bench-")
        .permissions(std::fs::Permissions::from_mode(0o755))
        .tempdir_in(WORK_PARENT)?)
}

fn bin_dir(arguments: &Arguments) -> Result<PathBuf> {
    if let Some(folder) = &arguments.bin_dir {
        return Ok(std::path::absolute(folder)?);
    }
    let own = std::env::current_exe()?;
    Ok(own.parent().ok_or("this program lies in no folder")?.to_owned())
}

fn write_out(path: &Path, text: &str) -> Result<()> {
    let failed = |error: std::io::Error| format!("cannot write {}: {error}", path.display());
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder).map_err(failed)?;
    }
    // Before the measuring only the folder and the permission are checked; an older table stays until then.
    if text.is_empty() {
        std::fs::OpenOptions::new().append(true).create(true).open(path).map_err(failed)?;
        return Ok(());
    }
    Ok(std::fs::write(path, text).map_err(failed)?)
}

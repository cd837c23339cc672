//! `portolan passwd NAME`: a line for the admins file.

use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::process::ExitCode;

use clap::Parser;
use portolan_config::admins;
use portolan_process::EXIT_USAGE;
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};

use portolan_cluster::auth::local::hash_password;

/// Make a line for the admins file.
///
/// Asks for the password on a terminal, twice and without showing it; otherwise reads it from the first line
/// of standard input. Prints NAME:HASH:RIGHTS:DOMAINS, with :ROOT where one is given.
#[derive(Parser)]
pub(super) struct Arguments {
    /// The admin's name: 1 to 256 bytes, without ':'.
    #[arg(value_parser = name)]
    name: String,
    /// What the admin may do: some of backup, write, delete and restore, with commas between. Backup reads; write uploads,
    /// replaces and renames; delete removes; restore is write and delete.
    #[arg(long, default_value = "backup", value_parser = rights)]
    rights: String,
    /// Domains the rights hold for, with commas between, or * for all.
    #[arg(long, default_value = "*", value_parser = domains)]
    domains: String,
    /// Where the admin's tree begins, such as /domains/example.org: it shows as /, and there is nothing above it.
    #[arg(long)]
    root: Option<String>,
}

/// Characters of a password at least.
const PASSWORD_CHARACTERS_MIN: usize = 8;
/// Bytes of a password at most.
const PASSWORD_BYTES_MAX: usize = 1_024;

fn name(text: &str) -> Result<String, String> {
    admins::check_name(text).map(|()| text.to_owned())
}

fn rights(text: &str) -> Result<String, String> {
    admins::parse_rights(text).map(|_| text.to_owned())
}

fn domains(text: &str) -> Result<String, String> {
    admins::parse_domains(text).map(|_| text.to_owned())
}

pub(super) fn run(arguments: &Arguments) -> ExitCode {
    let domains = admins::parse_domains(&arguments.domains).expect("checked with the argument");
    let root = arguments.root.as_ref().map(|root| admins::parse_root(root, |domain| domains.covers(domain)));
    if let Some(Err(message)) = root {
        eprintln!("portolan passwd: --root: {message}");
        return ExitCode::from(EXIT_USAGE);
    }
    let password = match read_password() {
        Ok(password) => password,
        Err(message) => {
            eprintln!("portolan passwd: {message}");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    match hash_password(&password) {
        Ok(hash) => {
            let Arguments { name, rights, domains, root } = arguments;
            let root = root.as_ref().map(|root| format!(":{root}")).unwrap_or_default();
            println!("{name}:{hash}:{rights}:{domains}{root}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("portolan passwd: the password cannot be hashed: {error}");
            ExitCode::FAILURE
        }
    }
}

fn read_password() -> Result<String, String> {
    let password = if std::io::stdin().is_terminal() {
        let first = ask("Password: ")?;
        if ask("Again: ")? != first {
            return Err("the two passwords differ".to_owned());
        }
        first
    } else {
        read_line()?
    };
    if password.chars().count() < PASSWORD_CHARACTERS_MIN || password.len() > PASSWORD_BYTES_MAX {
        let allowed = format!("{PASSWORD_CHARACTERS_MIN} characters to {PASSWORD_BYTES_MAX} bytes");
        return Err(format!("the password is too short or too long; allowed: {allowed}"));
    }
    Ok(password)
}

/// A password that is there already, asked for once.
pub(super) fn read_one() -> Result<String, String> {
    if std::io::stdin().is_terminal() { ask("Password: ") } else { read_line() }
}

/// Asks on the terminal with echo switched off.
fn ask(prompt: &str) -> Result<String, String> {
    let terminal = std::io::stdin();
    let failed = |errno: rustix::io::Errno| format!("cannot switch off the terminal's echo: {errno}");
    let shown = tcgetattr(&terminal).map_err(failed)?;
    let mut hidden = shown.clone();
    hidden.local_modes.remove(LocalModes::ECHO);
    eprint!("{prompt}");
    std::io::stderr().flush().map_err(|error| error.to_string())?;
    tcsetattr(&terminal, OptionalActions::Now, &hidden).map_err(failed)?;
    let line = read_line();
    tcsetattr(&terminal, OptionalActions::Now, &shown).map_err(failed)?;
    eprintln!();
    line
}

fn read_line() -> Result<String, String> {
    let mut line = String::new();
    std::io::stdin()
        .lock()
        .read_line(&mut line)
        .map_err(|error| format!("cannot read the password: {error}"))?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

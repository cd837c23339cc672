//! `portolan demo`: a three-node cluster in one process, backed up and restored over FTP with a real client.
//!
//! Who calls it: the operator who wants to see it work.
//! What it calls: `sample` for the mail, `cluster` for the servers, `client` for FTP, `verify` for the proof.
//! What it never does: take a short cut; the servers are those of a real site, over real sockets.

mod client;
mod cluster;
mod sample;
mod verify;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use portolan_config::checked::log::{Level, Log, LogFormat};
use portolan_process as process;

use client::{Client, Transferred};
use cluster::Cluster;

/// Run a three-node cluster on loopback, back it up over FTPS, verify, restore, and stay up to try.
///
/// Makes sample mail in three nodes, starts their agents and a front end, downloads everything through the
/// front end over explicit TLS, compares every file with the nodes by SHA-256, deletes a user on its node,
/// restores it over FTP and compares again. Exit status 0 when every comparison held.
#[derive(Parser)]
pub(super) struct Arguments {
    /// End after the verification instead of staying up.
    #[arg(long)]
    once: bool,
    /// Folder for certificates, nodes and backup, empty or not there yet; kept. Otherwise a temporary one.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Seed of the sample data: the same seed gives the same bytes.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Messages in the whole cluster, about.
    #[arg(long, default_value_t = 3_000, value_parser = clap::value_parser!(u32).range(30..=1_000_000))]
    messages: u32,
    /// FTP sessions at once.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u8).range(1..=20))]
    sessions: u8,
    /// Port of the FTP listener on 127.0.0.1; 0 takes a free one.
    #[arg(long, default_value_t = 0)]
    port: u16,
}

type Error = Box<dyn std::error::Error + Send + Sync>;

pub(super) fn run(arguments: Arguments) -> ExitCode {
    let log = Log::stderr(Level::Warning, LogFormat::Text);
    let telemetry = match process::start_telemetry(&log, None, "portolan") {
        Ok(telemetry) => telemetry,
        Err(status) => return status,
    };
    let status = process::run(None, async move {
        demo(arguments).await.map_err(|error| error as Box<dyn std::error::Error>)
    });
    telemetry.stop();
    status
}

async fn demo(arguments: Arguments) -> Result<(), Error> {
    let shutdown = process::shutdown_on_signal(process::DrainLimit::default())?;
    let temporary = tempfile::Builder::new().prefix("portolan-demo-").tempdir()?;
    let folder = match &arguments.dir {
        Some(folder) => {
            empty_folder(folder)?;
            folder.canonicalize()?
        }
        None => temporary.path().to_owned(),
    };
    let backup = folder.join("backup");
    println!("Portolan demo: three mail nodes, one FTP endpoint\n");

    let sample = sample::make(&folder, arguments.seed, arguments.messages)?;
    println!(
        "sample   {} domains, {} users, {} messages, {} files, {} on nodes mail-1, mail-2, mail-3",
        sample.domains,
        sample.users,
        sample.messages,
        sample.files,
        size(sample.bytes)
    );

    let cluster = Cluster::start(&folder, arguments.port).await?;
    println!(
        "cluster  3 agents over gRPC with mTLS, front end at ftp://{} (explicit TLS)\n",
        cluster.address
    );
    let client = Client::new(cluster.address, cluster.authority.clone(), arguments.sessions)?;

    let worked = tokio::select! {
        worked = tokio::task::spawn_blocking({
            let (folder, backup, client) = (folder.clone(), backup.clone(), client);
            move || work(&folder, &backup, &client)
        }) => worked?,
        () = shutdown.cancelled() => Err("interrupted".into()),
    };
    if let Err(error) = worked {
        cluster.stop().await;
        return Err(error);
    }
    println!("\nEvery file was compared by SHA-256; all are the same.");
    if !arguments.once {
        try_it(&cluster, &folder);
        shutdown.cancelled().await;
    }
    cluster.stop().await;
    Ok(())
}

/// Backup, verification, loss, restore, verification.
fn work(folder: &Path, backup: &Path, client: &Client) -> Result<(), Error> {
    let started = Instant::now();
    let done = client.download("/", backup)?;
    report("backup", &done, started.elapsed());

    verify(folder, backup)?;

    let user = format!("domains/{}/users/{}", sample::SPREAD_DOMAIN, sample::LOST_USER);
    let on_node = folder.join("nodes").join(sample::LOST_USER_NODE).join(&user);
    std::fs::remove_dir_all(&on_node)?;
    println!("\nloss     /{user} was deleted on node {}", sample::LOST_USER_NODE);

    let started = Instant::now();
    let done = client.upload(&backup.join(&user), &format!("/{user}"))?;
    report("restore", &done, started.elapsed());

    verify(folder, backup)
}

fn verify(folder: &Path, backup: &Path) -> Result<(), Error> {
    let checked = verify::same(&folder.join("nodes"), backup)?;
    println!(
        "verify   {} files, {}: content and times are those on the nodes",
        checked.files,
        size(checked.bytes)
    );
    Ok(())
}

fn report(what: &str, done: &Transferred, took: Duration) {
    let seconds = took.as_secs_f64().max(0.001);
    let (files, bytes) = (done.files as f64 / seconds, done.bytes as f64 / seconds);
    println!(
        "{what:<8} {} files, {} in {seconds:.1} s: {files:.0} files/s, {}/s",
        done.files,
        size(done.bytes),
        size(bytes as u64)
    );
}

fn size(bytes: u64) -> indicatif::BinaryBytes {
    indicatif::BinaryBytes(bytes)
}

/// A folder that holds nothing of anybody's.
fn empty_folder(folder: &Path) -> Result<(), Error> {
    std::fs::create_dir_all(folder)?;
    if std::fs::read_dir(folder)?.next().is_some() {
        return Err(format!("{} is not empty", folder.display()).into());
    }
    Ok(())
}

fn try_it(cluster: &Cluster, folder: &Path) {
    let (address, authority) = (cluster.address, cluster.authority.display());
    let (name, password) = (cluster::ADMIN, cluster::PASSWORD);
    println!(
        "\nThe cluster stays up until Ctrl-C. Its files are in {folder}.\n\n\
         lftp -e 'set ssl:ca-file {authority}; set ftp:ssl-force true' -u {name},{password} ftp://{address}\n\
         curl --ssl-reqd --cacert {authority} -u {name}:{password} ftp://{address}/domains/\n",
        folder = folder.display(),
    );
}

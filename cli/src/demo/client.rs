//! The demo's FTP client: suppaftp over explicit TLS, several sessions at once.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use chrono::{DateTime, Utc};
use indicatif::{ProgressBar, ProgressStyle};
use parking_lot::{Condvar, Mutex};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use suppaftp::list::ListParser;
use suppaftp::types::FileType;
use suppaftp::{FtpError, RustlsConnector, RustlsFtpStream, Status};

use super::{Error, cluster};

/// How long a session may wait for an answer.
const ANSWER_MAX: Duration = Duration::from_secs(60);

/// Opens sessions and moves whole directories with them.
#[derive(Clone)]
pub(super) struct Client {
    address: SocketAddr,
    tls: Arc<rustls::ClientConfig>,
    sessions: u8,
}

/// What was moved.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Transferred {
    pub(super) files: u64,
    pub(super) bytes: u64,
}

/// One piece of work: a directory to walk or a file to move.
enum Job {
    Directory { remote: String, local: PathBuf },
    File { remote: String, local: PathBuf, size: u64, modified: SystemTime },
}

impl Client {
    pub(super) fn new(address: SocketAddr, authority: PathBuf, sessions: u8) -> Result<Self, Error> {
        let mut roots = rustls::RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(&authority)? {
            roots.add(certificate?)?;
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self { address, tls: Arc::new(tls), sessions })
    }

    fn session(&self) -> Result<RustlsFtpStream, FtpError> {
        let plain = RustlsFtpStream::connect(self.address)?;
        {
            let socket = plain.get_ref();
            socket.set_read_timeout(Some(ANSWER_MAX)).map_err(FtpError::ConnectionError)?;
            socket.set_nodelay(true).map_err(FtpError::ConnectionError)?;
        }
        let connector = RustlsConnector::from(Arc::clone(&self.tls));
        let mut session = plain.into_secure(connector, &self.address.ip().to_string())?;
        session.login(cluster::ADMIN, cluster::PASSWORD)?;
        session.transfer_type(FileType::Binary)?;
        Ok(session)
    }

    /// Copies a directory of the server into a folder, with times.
    pub(super) fn download(&self, remote: &str, local: &Path) -> Result<Transferred, Error> {
        let first = Job::Directory { remote: remote.to_owned(), local: local.to_owned() };
        self.work("backup", first, |session, job, queue| match job {
            Job::Directory { remote, local } => {
                fs::create_dir_all(&local)?;
                for line in session.mlsd(Some(&remote))? {
                    let entry =
                        ListParser::parse_mlsd(&line).map_err(|error| format!("{line:?}: {error}"))?;
                    let name = entry.name();
                    let remote = format!("{}/{name}", remote.trim_end_matches('/'));
                    let local = local.join(name);
                    queue.push(if entry.is_directory() {
                        Job::Directory { remote, local }
                    } else {
                        Job::File { remote, local, size: entry.size() as u64, modified: entry.modified() }
                    });
                }
                Ok(0)
            }
            Job::File { remote, local, size, modified } => {
                let mut file = File::create(&local)?;
                let mut content = session.retr_as_stream(&remote)?;
                let copied = io::copy(&mut content, &mut file)?;
                content.finish()?;
                if copied != size {
                    return Err(format!("{remote}: {copied} bytes came, the listing said {size}").into());
                }
                file.set_modified(modified)?;
                Ok(copied)
            }
        })
    }

    /// Copies a folder into a directory of the server, with times.
    pub(super) fn upload(&self, local: &Path, remote: &str) -> Result<Transferred, Error> {
        let first = Job::Directory { remote: remote.to_owned(), local: local.to_owned() };
        self.work("restore", first, |session, job, queue| match job {
            Job::Directory { remote, local } => {
                session.mkdir(&remote)?;
                for entry in fs::read_dir(&local)? {
                    let entry = entry?;
                    let name = entry.file_name();
                    let name = name.to_str().ok_or("the sample's names are UTF-8")?;
                    let (remote, local) = (format!("{remote}/{name}"), entry.path());
                    queue.push(if entry.file_type()?.is_dir() {
                        Job::Directory { remote, local }
                    } else {
                        let metadata = entry.metadata()?;
                        Job::File { remote, local, size: metadata.len(), modified: metadata.modified()? }
                    });
                }
                Ok(0)
            }
            Job::File { remote, local, size, modified } => {
                let mut content = session.put_with_stream(&remote)?;
                let copied = io::copy(&mut BufReader::new(File::open(&local)?), &mut content)?;
                content.finish()?;
                if copied != size {
                    return Err(format!("{remote}: {copied} bytes were sent of {size}").into());
                }
                let time = DateTime::<Utc>::from(modified).format("%Y%m%d%H%M%S");
                session.custom_command(format!("MFMT {time} {remote}"), &[Status::File])?;
                Ok(copied)
            }
        })
    }

    /// Works the jobs off with all sessions. The first failure ends all of them.
    fn work(
        &self,
        what: &'static str,
        first: Job,
        step: impl Fn(&mut RustlsFtpStream, Job, &Queue) -> Result<u64, Error> + Sync,
    ) -> Result<Transferred, Error> {
        let queue = Queue::new(what);
        queue.push(first);
        std::thread::scope(|scope| {
            for _ in 0..self.sessions {
                scope.spawn(|| {
                    let done = self.session().map_err(Error::from).and_then(|mut session| {
                        while let Some(job) = queue.next() {
                            let is_file = matches!(job, Job::File { .. });
                            let bytes = step(&mut session, job, &queue)?;
                            queue.done(is_file, bytes);
                        }
                        Ok(session.quit()?)
                    });
                    if let Err(error) = done {
                        queue.fail(error);
                    }
                });
            }
        });
        queue.finish()
    }
}

/// Jobs that wait, and how many are in hand: none of either means that all is done.
struct Queue {
    state: Mutex<State>,
    changed: Condvar,
    progress: ProgressBar,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Job>,
    in_hand: usize,
    moved: Transferred,
    failure: Option<Error>,
}

impl Queue {
    fn new(what: &'static str) -> Self {
        let style = "{msg:<8} [{bar:30}] {pos}/{len} files, {elapsed}";
        let style = ProgressStyle::with_template(style).expect("a constant").progress_chars("=> ");
        // Draws on a terminal only.
        let progress = ProgressBar::new(0).with_style(style).with_message(what);
        Self { state: Mutex::default(), changed: Condvar::new(), progress }
    }

    fn lock(&self) -> parking_lot::MutexGuard<'_, State> {
        self.state.lock()
    }

    fn push(&self, job: Job) {
        if matches!(job, Job::File { .. }) {
            self.progress.inc_length(1);
        }
        self.lock().waiting.push_back(job);
        self.changed.notify_one();
    }

    fn next(&self) -> Option<Job> {
        let mut state = self.lock();
        loop {
            if state.failure.is_some() {
                return None;
            }
            if let Some(job) = state.waiting.pop_front() {
                state.in_hand += 1;
                return Some(job);
            }
            if state.in_hand == 0 {
                return None;
            }
            self.changed.wait(&mut state);
        }
    }

    fn done(&self, is_file: bool, bytes: u64) {
        let mut state = self.lock();
        state.in_hand -= 1;
        if is_file {
            state.moved.files += 1;
            state.moved.bytes += bytes;
            self.progress.inc(1);
        }
        self.changed.notify_all();
    }

    fn fail(&self, error: Error) {
        self.lock().failure.get_or_insert(error);
        self.changed.notify_all();
    }

    fn finish(self) -> Result<Transferred, Error> {
        self.progress.finish_and_clear();
        let state = self.state.into_inner();
        match state.failure {
            Some(error) => Err(error),
            None => Ok(state.moved),
        }
    }
}

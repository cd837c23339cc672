//! The loop of a session: reads commands while work is under way, and answers them in order.
//!
//! Who calls it: `native::serve`.
//! What it calls: `commands` for each command; `codec` for the control connection; `session` holds the state.
//! What it never does: know what a command means, but for those that are answered beside work.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::FutureExt as _;
use portolan_config::checked::listener::Tls;
use portolan_telemetry::log::PROTOCOL;
use tokio::net::TcpStream;
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tokio_rustls::server::TlsStream;
use tracing::{Instrument as _, Span};

use super::Stream;
use super::arrival::{Parting, Setup};
use super::codec::{ControlIo, Line};
use super::command::{Command, Fault};
use super::commands;
use super::session::{Session, Step};
use super::tls::SessionTls;
use super::work::{Progress, Work};
use crate::control::TransferUnderWay;
use crate::metrics::Way;
use crate::reply::Reply;
use crate::transfer::Transfer;
use crate::verb::Verb;
use crate::{ControlConnection, Ending, Service};

/// Lines, and their bytes, that a client may send ahead while work is under way. Reading goes on all the time,
/// so that an ABOR and the end of the connection are seen; so what is more ends the session.
const DEFERRED_MAX: usize = 64;
const DEFERRED_BYTES_MAX: usize = 64 * 1024;
/// A session that is asked to end and cannot say good bye, because its client takes nothing, has its connection
/// closed after this long.
const GOOD_BYE_MAX: Duration = Duration::from_secs(3);

/// Data connections of refused transfers that one session ends in order at once; for a further one the oldest is given up, whose
/// client has had its reply for the longest time.
const PARTINGS_MAX: usize = 4;
/// A client that says QUIT and takes nothing of its download for this long has the reply ahead of the transfer's.
const UNREAD_MAX: Duration = Duration::from_millis(500);
const UNREAD_LOOK: Duration = Duration::from_millis(100);

/// Why a session ended otherwise than by QUIT.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("the control connection broke")]
    Control(#[from] io::Error),
    #[error("the TLS handshake of the control connection failed")]
    Tls(#[from] super::tls::Error),
    #[error("{0}")]
    Refused(&'static str),
}

/// Serves one control connection until it ends.
pub(crate) async fn serve(service: Arc<Service>, stream: TcpStream, control: Arc<ControlConnection>) {
    let serving = run(service, stream, &control);
    // The session itself says good bye. This is for one that cannot, because its client takes no replies.
    let cutting = async {
        control.asked_to_end(Ending::Drain).await;
        tokio::time::sleep(GOOD_BYE_MAX).await;
        tokio::select! {
            () = control.idle() => {}
            _ = control.asked_to_end(Ending::Kick) => {}
        }
        if control.is_asked_to_end() == Ending::Kick && control.is_busy() {
            tokio::time::sleep(GOOD_BYE_MAX).await;
        }
        control.close();
        std::future::pending::<()>().await;
    };
    tokio::select! {
        served = serving => if let Err(ended) = served {
            tracing::info!(cause = portolan_telemetry::chain(&ended), "session ended early");
        },
        () = cutting => {}
    }
    control.close();
}

async fn run(
    service: Arc<Service>,
    stream: TcpStream,
    control: &Arc<ControlConnection>,
) -> Result<(), Ended> {
    // The urgent byte that some clients send with ABOR belongs to the line.
    rustix::net::sockopt::set_socket_oobinline(&stream, true).map_err(io::Error::from)?;
    let origin = control.origin;
    let handshake_max = service.listener.handshake_timeout;
    let tls = service.tls_sessions.as_ref();
    let tls = tls.map(|tls| Arc::new(SessionTls::new(tls, origin.client.ip(), handshake_max)));
    let implicit = matches!(service.listener.tls, Tls::Implicit { .. });
    let stream = match &tls {
        Some(tls) if implicit => Stream::Right(Box::new(handshake(control, tls, stream).await?)),
        _ => Stream::Left(stream),
    };
    let session = Session::new(service, control, tls, implicit);
    let mut conversation = Conversation {
        session,
        io: ControlIo::new(stream),
        deferred: VecDeque::new(),
        deferred_bytes: 0,
        running: None,
        partings: VecDeque::new(),
        has_said_good_bye: false,
    };
    let greeting = conversation.session.greeting();
    conversation.io.send(&greeting).await?;
    loop {
        let turn = match conversation.turn().await {
            Ok(turn) => turn,
            Err(ended) => {
                conversation.end_work(CONTROL_CLOSED).await;
                return Err(ended);
            }
        };
        match turn {
            Turn::Next => {}
            Turn::StartTls(reply) => conversation = conversation.start_tls(&reply).await?,
            Turn::Over => return Ok(()),
        }
    }
}

/// The handshake of the control connection, which a drain does not wait for.
async fn handshake(
    control: &ControlConnection,
    tls: &SessionTls,
    stream: TcpStream,
) -> Result<TlsStream<TcpStream>, Ended> {
    tokio::select! {
        accepted = tls.accept_control(stream) => Ok(accepted?),
        _ = control.asked_to_end(Ending::Drain) => Err(Ended::Refused("it was in its TLS handshake and is to end")),
    }
}

/// Why work is aborted, for the log.
const CONTROL_CLOSED: &str = "the control connection was closed";

/// What follows an event.
enum Turn {
    Next,
    /// The reply, then the TLS handshake.
    StartTls(Reply),
    Over,
}

/// A session with its control connection and what is under way.
struct Conversation {
    session: Session,
    io: ControlIo,
    /// Lines that came while work was under way, to be answered when it is done.
    deferred: VecDeque<Line>,
    deferred_bytes: usize,
    running: Option<Running>,
    /// Places for data connections that are being ended beside the session.
    partings: VecDeque<AbortHandle>,
    /// The reply to QUIT is out already.
    has_said_good_bye: bool,
}

struct Running {
    verb: Verb,
    work: Work,
    transfer: Option<Arc<Transfer>>,
    span: Span,
    /// Since QUIT: when content moved last, and how much had by then.
    leaving: Option<(Instant, u64)>,
    /// Keeps a drain from closing the session before the last reply is out.
    _under_way: TransferUnderWay,
}

impl Running {
    /// Nothing can call it back any more.
    fn is_committing(&self) -> bool {
        self.transfer.as_ref().is_some_and(|transfer| transfer.is_committing())
    }

    /// Waits until a client that has said QUIT has taken nothing for a while.
    async fn is_unread(transfer: Option<&Transfer>, leaving: &mut Option<(Instant, u64)>) {
        loop {
            let (Some(transfer), Some((moved, bytes))) = (transfer, leaving.as_mut()) else {
                return std::future::pending().await;
            };
            if transfer.bytes() != *bytes {
                (*moved, *bytes) = (Instant::now(), transfer.bytes());
            } else if moved.elapsed() >= UNREAD_MAX {
                return;
            }
            tokio::time::sleep(UNREAD_LOOK).await;
        }
    }

    /// Goes on with the work, as part of its command.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Progress> {
        let _within = self.span.enter();
        self.work.as_mut().poll(context)
    }

    fn abort(self, why: &'static str) {
        if let Some(transfer) = &self.transfer {
            transfer.broken_off(&why);
        }
    }
}

impl Conversation {
    /// Takes the next event.
    async fn turn(&mut self) -> Result<Turn, Ended> {
        let Some(running) = &mut self.running else {
            // What was sent ahead would otherwise keep the session from a drain.
            let ending = self.session.control.is_asked_to_end();
            if ending != Ending::No {
                return self.close(&ending.reply()).await;
            }
            let line = match self.deferred.pop_front() {
                Some(line) => {
                    self.deferred_bytes -= line.bytes();
                    line
                }
                None => match self.next_line().await? {
                    Ok(line) => line,
                    Err(reply) => return self.close(&reply).await,
                },
            };
            return self.line(line).await;
        };
        let control = Arc::clone(&self.session.control);
        let (watched, mut leaving) = (running.transfer.clone(), running.leaving);
        tokio::select! {
            biased;
            // Before the work, which must not end well when an ABOR has come.
            line = self.io.next_line() => {
                // A connection that fails is one that is closed.
                return self.line_beside(line.unwrap_or(Line::Closed)).await;
            }
            ending = control.asked_to_end(Ending::Kick) => {
                self.end_work("the operator closed the session").await;
                return self.close(&ending.reply()).await;
            }
            outcome = poll_fn(|context| running.poll(context)) => self.worked(outcome).await?,
            () = Running::is_unread(watched.as_deref(), &mut leaving) => {
                leaving = None;
                self.has_said_good_bye = true;
                self.io.send(&commands::good_bye()).await?;
            }
        }
        if let Some(running) = &mut self.running {
            running.leaving = leaving;
        }
        Ok(Turn::Next)
    }

    /// The next line of an idle session, or the reply that ends it: it was idle for too long, or is asked to end.
    async fn next_line(&mut self) -> Result<Result<Line, Reply>, Ended> {
        let idle = Instant::now() + self.session.service.listener.idle_timeout;
        let deadline = match self.session.login {
            Some(_) => idle,
            None => idle.min(self.session.login_by),
        };
        let control = Arc::clone(&self.session.control);
        let protected = self.session.modes.protected;
        loop {
            let Session { setup, parting, .. } = &mut self.session;
            tokio::select! {
                biased;
                // First, or a client that never stops asking would keep the session.
                ending = control.asked_to_end(Ending::Drain) => return Ok(Err(ending.reply())),
                line = self.io.next_line() => return Ok(Ok(line?)),
                // The client may want its handshake before it sends the command.
                () = setup.go_on(protected) => {}
                has_come = has_come(parting) => self.parted(has_come),
                () = tokio::time::sleep_until(deadline) => break,
            }
        }
        let reply = match self.session.login {
            Some(_) => Reply::new(421, "Idle timeout; closing the connection."),
            None => Reply::new(421, "Login timed out; closing the connection."),
        };
        tracing::info!("session closed: idle timeout");
        Ok(Err(reply))
    }

    async fn close(&mut self, reply: &Reply) -> Result<Turn, Ended> {
        self.io.send(reply).await?;
        self.io.shutdown().await;
        Ok(Turn::Over)
    }

    /// Work has come to something: tells the client, and begins what follows.
    async fn worked(&mut self, mut outcome: Progress) -> Result<(), Ended> {
        let mut left = Setup::None;
        let code = loop {
            let (reply, next) = match outcome {
                Progress::More(reply, next) => (reply, Some(next)),
                Progress::Done(reply) => (reply, None),
                Progress::Refused(reply, setup) => {
                    left = setup;
                    (reply, None)
                }
            };
            self.io.queue(&reply);
            let Some((running, next)) = self.running.as_mut().zip(next) else { break reply.code };
            running.work = next;
            // A small file may be through at once; then both replies go out as one.
            match futures_util::poll!(poll_fn(|context| running.poll(context))) {
                Poll::Ready(following) => outcome = following,
                Poll::Pending => return Ok(self.io.flush().await?),
            }
        };
        let sent = self.io.flush().await;
        if let Some(Running { verb, span, .. }) = self.running.take() {
            self.session.answered(verb, &span, code);
            self.session.wrong_commands.count(code);
        }
        sent?;
        self.part(left);
        Ok(())
    }

    /// The transfer was refused, and the client has its reply: what it has opened for it is ended in order, beside the session.
    /// Who has not come yet may do so for a moment.
    fn part(&mut self, setup: Setup) {
        let Some(parting) = Parting::of(setup, self.session.modes.protected) else { return };
        self.session.parting = Some(parting);
        if let Some(has_come) = has_come(&mut self.session.parting).now_or_never() {
            self.parted(has_come);
        }
    }

    fn parted(&mut self, has_come: bool) {
        let Some(parting) = self.session.parting.take().filter(|_| has_come) else { return };
        self.partings.retain(|earlier| !earlier.is_finished());
        if self.partings.len() >= PARTINGS_MAX
            && let Some(oldest) = self.partings.pop_front()
        {
            oldest.abort();
        }
        // Not awaited: it ends within its time, and there are few at once.
        let finishing = parting.finish().instrument(self.session.control.span.clone());
        self.partings.push_back(tokio::spawn(finishing).abort_handle());
    }

    /// A line of a session that has nothing under way.
    async fn line(&mut self, line: Line) -> Result<Turn, Ended> {
        let line = match line {
            Line::Command(line) => line,
            Line::TooLong => {
                return self.reply(Reply::new(500, "The line is longer than 4096 bytes.")).await;
            }
            Line::Endless => {
                tracing::warn!("session closed: a line without an end");
                return self.close(&Reply::new(421, "Line too long; closing the connection.")).await;
            }
            Line::Tls => {
                return self.refuse_protocol("the client speaks TLS where plaintext was expected").await;
            }
            Line::Proxy => {
                let from = self.session.origin.client;
                tracing::warn!(%from, "a PROXY header came from an address that is not in proxy_protocol.trusted");
                return self.refuse_protocol("a PROXY header came where none is trusted").await;
            }
            Line::Closed => {
                self.io.answer_end().await;
                return Ok(Turn::Over);
            }
        };
        let command = match Command::parse(&line) {
            Ok(command) => command,
            Err(fault) => return self.no_command(&line, fault).await,
        };
        let verb = command.verb;
        command.log();
        let span = self.session.control.command_span(verb);
        match commands::run(&mut self.session, command).instrument(span.clone()).await {
            Step::Reply(reply) => {
                self.session.answered(verb, &span, reply.code);
                // A data connection serves one transfer, also one that was refused.
                let left = match verb.content() {
                    Some(_) => std::mem::take(&mut self.session.setup),
                    None => Setup::None,
                };
                let turn = self.reply(reply).await?;
                self.part(left);
                return Ok(turn);
            }
            Step::Work(work, transfer) => {
                let _under_way = self.session.control.begin_transfer(transfer.clone());
                self.running = Some(Running { verb, work, transfer, span, leaving: None, _under_way });
            }
            Step::StartTls(reply) => return Ok(Turn::StartTls(reply)),
            Step::Quit(_) if self.has_said_good_bye => {
                self.io.shutdown().await;
                return Ok(Turn::Over);
            }
            Step::Quit(reply) => return self.close(&reply).await,
        }
        Ok(Turn::Next)
    }

    /// Answers a command that has come to its end, and counts it if it was wrong: unknown, with a wrong argument,
    /// or out of order.
    async fn reply(&mut self, reply: Reply) -> Result<Turn, Ended> {
        let session = &mut self.session;
        let Some(wrong) = session.wrong_commands.count(reply.code) else {
            self.io.send(&reply).await?;
            return Ok(Turn::Next);
        };
        let limit = session.service.listener.errors.wrong_commands_max;
        if limit == 0 || wrong < limit {
            self.io.send(&reply).await?;
            return Ok(Turn::Next);
        }
        tracing::warn!(wrong, "session closed: too many wrong commands");
        self.close(&Reply::with(421, format!("{wrong} wrong commands; closing the connection."))).await
    }

    async fn refuse_protocol(&mut self, what: &'static str) -> Result<Turn, Ended> {
        self.close(&Reply::new(421, "This port serves FTP only; closing the connection.")).await?;
        Err(Ended::Refused(what))
    }

    async fn no_command(&mut self, line: &[u8], fault: Fault) -> Result<Turn, Ended> {
        if self.session.login.is_none()
            && let Some(protocol) = foreign_protocol(line)
        {
            return self.refuse_protocol(protocol).await;
        }
        // What is no command may be a password that was typed in the wrong place.
        tracing::debug!(target: PROTOCOL, bytes = line.len(), "line is not a command");
        let reply = match fault {
            Fault::Unknown => Reply::new(500, "Unknown command; HELP lists the commands."),
            Fault::Bare(verb) => Reply::with(501, format!("{} needs an argument.", verb.name())),
        };
        self.reply(reply).await
    }

    /// A line that came while work is under way.
    async fn line_beside(&mut self, line: Line) -> Result<Turn, Ended> {
        let Some(running) = &mut self.running else { return self.line(line).await };
        let verb = match &line {
            Line::Command(bytes) => Command::parse(bytes).ok(),
            Line::TooLong | Line::Tls | Line::Proxy => None,
            Line::Endless | Line::Closed => {
                self.end_work(CONTROL_CLOSED).await;
                self.io.answer_end().await;
                return Ok(Turn::Over);
            }
        };
        let waits = !self.deferred.is_empty();
        match verb.map(|command| (command.verb, command.argument.is_empty())) {
            Some((Verb::ABOR, _)) if !running.is_committing() => {
                if let Some(running) = self.running.take() {
                    running.abort("the client aborted it");
                }
                self.io.queue(&Reply::new(426, "The transfer was aborted; nothing was changed."));
                self.io.send(&Reply::new(226, "ABOR completed.")).await?;
            }
            Some((Verb::NOOP, _)) if !waits => self.io.send(&commands::noop()).await?,
            Some((Verb::STAT, true)) if !waits => {
                let reply = commands::status(&self.session, running.transfer.as_deref());
                self.io.send(&reply).await?;
            }
            said => {
                // Of an upload nothing is said before its own reply: the client would take it for that.
                if !waits
                    && matches!(said, Some((Verb::QUIT, _)))
                    && let Some(transfer) =
                        running.transfer.as_ref().filter(|_| running.verb.content() != Some(Way::Upload))
                {
                    running.leaving = Some((Instant::now(), transfer.bytes()));
                }
                self.deferred_bytes += line.bytes();
                self.deferred.push_back(line);
                if self.deferred.len() > DEFERRED_MAX || self.deferred_bytes > DEFERRED_BYTES_MAX {
                    self.end_work("too many commands were sent ahead").await;
                    return self
                        .close(&Reply::new(421, "Too many commands were sent ahead; closing the connection."))
                        .await;
                }
            }
        }
        Ok(Turn::Next)
    }

    /// Ends what is under way with the session. What is being kept is kept, and its end told to the log.
    async fn end_work(&mut self, why: &'static str) {
        let Some(mut running) = self.running.take() else { return };
        if running.is_committing() {
            poll_fn(|context| running.poll(context)).await;
        } else {
            running.abort(why);
        }
    }

    /// Puts TLS around the control connection. What came in plaintext before must not be taken for protected.
    async fn start_tls(mut self, reply: &Reply) -> Result<Self, Ended> {
        if !self.io.unread().is_empty() || !self.deferred.is_empty() {
            self.close(&Reply::new(
                421,
                "Data received between AUTH and the TLS handshake; closing the connection.",
            ))
            .await?;
            return Err(Ended::Refused("commands were sent after AUTH and before TLS"));
        }
        self.io.send(reply).await?;
        let Self { mut session, io, deferred, deferred_bytes, running, partings, has_said_good_bye } = self;
        let (Some(tls), Stream::Left(stream)) = (session.tls.clone(), io.into_stream()) else {
            return Err(Ended::Refused("TLS was asked for where there is none, or twice"));
        };
        let stream = handshake(&session.control, &tls, stream).await?;
        session.protected = true;
        let io = ControlIo::new(Stream::Right(Box::new(stream)));
        Ok(Self { session, io, deferred, deferred_bytes, running, partings, has_said_good_bye })
    }
}

/// Has somebody come for a transfer that was refused? Never ends where there is none.
async fn has_come(parting: &mut Option<Parting>) -> bool {
    match parting {
        Some(parting) => parting.has_come().await,
        None => std::future::pending().await,
    }
}

/// What else speaks first: a client of another protocol is told once, and not bothered with replies that it
/// cannot read.
fn foreign_protocol(line: &[u8]) -> Option<&'static str> {
    const HTTP: [&[u8]; 8] =
        [b"GET ", b"POST ", b"HEAD ", b"PUT ", b"CONNECT ", b"OPTIONS ", b"DELETE ", b"PRI "];
    const SMTP: [&[u8]; 3] = [b"EHLO", b"HELO", b"MAIL FROM"];
    if HTTP.iter().any(|verb| line.starts_with(verb)) {
        return Some("the client speaks HTTP");
    }
    let speaks_smtp =
        |verb: &&[u8]| line.get(..verb.len()).is_some_and(|start| start.eq_ignore_ascii_case(verb));
    SMTP.iter().any(speaks_smtp).then_some("the client speaks SMTP")
}

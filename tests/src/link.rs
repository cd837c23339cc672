//! A link between the front end and an agent that can fail.
//!
//! Who calls it: tests of faults.
//! What it calls: the agent behind it.
//! What it never does: change a byte.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// What a link does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    Open,
    /// Each byte arrives this much later.
    Slow(Duration),
    /// Connections are closed, and new ones too.
    Cut,
    /// Nothing arrives any more, and nobody is told.
    HalfOpen,
}

/// A relay on a port of its own.
pub struct FaultLink {
    pub address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    /// Bytes that came from the agent.
    down: AtomicU64,
}

struct State {
    link: Link,
    connections: Vec<TcpStream>,
}

impl Shared {
    fn link(&self) -> Link {
        self.state.lock().expect("no thread panics while it holds it").link
    }

    /// Waits until something may pass.
    fn pass(&self) {
        while self.link() == Link::HalfOpen {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl FaultLink {
    pub fn to(agent: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("bound");
        let state = Mutex::new(State { link: Link::Open, connections: Vec::new() });
        let shared = Arc::new(Shared { state, down: AtomicU64::new(0) });
        let relay = Arc::clone(&shared);
        // Ends with the test's process.
        std::thread::spawn(move || {
            for near in listener.incoming().flatten() {
                if relay.link() == Link::Cut {
                    continue;
                }
                if let Ok(far) = TcpStream::connect(agent) {
                    join(&relay, &near, &far);
                }
            }
        });
        Self { address, shared }
    }

    pub fn set(&self, link: Link) {
        let mut state = self.shared.state.lock().expect("no thread panics while it holds it");
        state.link = link;
        if link == Link::Cut {
            for connection in state.connections.drain(..) {
                connection.shutdown(Shutdown::Both).ok();
            }
        }
    }

    /// Bytes that came from the agent so far.
    pub fn down(&self) -> u64 {
        self.shared.down.load(Ordering::Relaxed)
    }
}

fn join(shared: &Arc<Shared>, near: &TcpStream, far: &TcpStream) {
    let clone = |stream: &TcpStream| stream.try_clone().expect("a descriptor is free");
    for stream in [near, far] {
        stream.set_nodelay(true).ok();
        shared.state.lock().expect("no thread panics while it holds it").connections.push(clone(stream));
    }
    pump(shared, clone(near), clone(far), false);
    pump(shared, clone(far), clone(near), true);
}

fn pump(shared: &Arc<Shared>, mut from: TcpStream, to: TcpStream, down: bool) {
    let (sender, receiver) = sync_channel::<(Instant, Vec<u8>)>(64);
    let (reading, writing) = (Arc::clone(shared), Arc::clone(shared));
    std::thread::spawn(move || {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            reading.pass();
            let Ok(count @ 1..) = from.read(&mut buffer) else { break };
            if down {
                reading.down.fetch_add(count as u64, Ordering::Relaxed);
            }
            let delay = if let Link::Slow(delay) = reading.link() { delay } else { Duration::ZERO };
            if sender.send((Instant::now() + delay, buffer[..count].to_vec())).is_err() {
                break;
            }
        }
    });
    std::thread::spawn(move || deliver(&writing, to, &receiver));
}

fn deliver(shared: &Shared, mut to: TcpStream, arriving: &Receiver<(Instant, Vec<u8>)>) {
    for (due, bytes) in arriving {
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        shared.pass();
        if to.write_all(&bytes).is_err() {
            break;
        }
    }
    to.shutdown(Shutdown::Both).ok();
}

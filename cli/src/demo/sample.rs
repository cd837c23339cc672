//! Sample mail: the same for the same seed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rand::{Rng, RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

/// The domain whose users lie on two nodes.
pub(super) const SPREAD_DOMAIN: &str = "gamma.example";
/// The user that the demo loses and restores, and the node that holds it.
pub(super) const LOST_USER: &str = "user-26";
pub(super) const LOST_USER_NODE: &str = "mail-3";

/// Users in the whole cluster; [`home`] says where.
const USERS: u32 = 30;
/// Mail sizes are log-normal: half are below 8 KiB, one in ten is above 43 KiB.
const MEDIAN_BYTES: f64 = 8.0 * 1024.0;
const SIGMA: f64 = 1.312;
const MESSAGE_BYTES_MAX: f64 = 8.0 * 1024.0 * 1024.0;

/// Folders below `folders/` of each user.
const FOLDERS: [&str; 6] =
    ["INBOX", "INBOX/Projekte/Übersicht 2026", "Gesendet", "Entwürfe", "Архив/2025", "受信箱"];

/// What was made.
#[derive(Debug, Default)]
pub(super) struct Sample {
    pub(super) domains: u32,
    pub(super) users: u32,
    pub(super) messages: u32,
    pub(super) files: u32,
    pub(super) bytes: u64,
}

/// The nodes' folders below `folder/nodes`, filled.
pub(super) fn make(folder: &Path, seed: u64, messages: u32) -> io::Result<Sample> {
    let mut maker = Maker {
        nodes: folder.join("nodes"),
        random: ChaCha8Rng::seed_from_u64(seed),
        sample: Sample::default(),
    };
    for (domain, node) in [("alpha.example", "mail-1"), ("beta.example", "mail-2"), (SPREAD_DOMAIN, "mail-2")]
    {
        maker.domain(node, domain)?;
    }
    for user in 0..USERS {
        let (domain, node) = home(user);
        // The remainder goes to the first users, so that the count is what was asked for.
        let share = messages / USERS + u32::from(user < messages % USERS);
        maker.user(node, domain, &format!("user-{user:02}"), share)?;
    }
    Ok(maker.sample)
}

/// Domain and node of a user: ten in each domain, those of the spread one on two nodes by turns of five.
pub(super) fn home(user: u32) -> (&'static str, &'static str) {
    match user {
        0..10 => ("alpha.example", "mail-1"),
        10..20 => ("beta.example", "mail-2"),
        20..25 => (SPREAD_DOMAIN, "mail-2"),
        _ => (SPREAD_DOMAIN, LOST_USER_NODE),
    }
}

/// Users of the spread domain with their nodes.
pub(super) fn spread_users() -> impl Iterator<Item = (String, &'static str)> {
    (20..USERS).map(|user| (format!("user-{user:02}"), home(user).1))
}

struct Maker {
    nodes: PathBuf,
    random: ChaCha8Rng,
    sample: Sample,
}

impl Maker {
    fn domain(&mut self, node: &str, domain: &str) -> io::Result<()> {
        self.sample.domains += 1;
        let base = format!("domains/{domain}");
        self.binary(node, &format!("{base}/domainRegistry.bin"))?;
        self.text(
            node,
            &format!("{base}/domainCoreConfig.cfg"),
            &format!("domain = {domain}\nquota = 50G\n"),
        )?;
        for list in ["announce", "größte-liste"] {
            self.object(node, &format!("{base}/maillists/{list}"), "maillist")?;
            self.messages(node, &format!("{base}/maillists/{list}/folders/Archive"), domain, 5)?;
        }
        self.object(node, &format!("{base}/groups/staff"), "group")?;
        self.object(node, &format!("{base}/forwarders/info"), "forwarder")?;
        self.object(node, &format!("{base}/folderRecipients/support"), "folderRecipient")?;
        self.messages(node, &format!("{base}/publicFolder/Schwarzes Brett"), domain, 8)
    }

    fn user(&mut self, node: &str, domain: &str, user: &str, messages: u32) -> io::Result<()> {
        self.sample.users += 1;
        let base = format!("domains/{domain}/users/{user}");
        self.object(node, &base, "account")?;
        for (index, folder) in FOLDERS.iter().enumerate() {
            let count = FOLDERS.len() as u32;
            let share = messages / count + u32::from((index as u32) < messages % count);
            self.messages(node, &format!("{base}/folders/{folder}"), domain, share)?;
        }
        // An empty folder is part of an account too.
        fs::create_dir_all(self.nodes.join(node).join(&base).join("folders/Papierkorb"))
    }

    fn object(&mut self, node: &str, base: &str, kind: &str) -> io::Result<()> {
        self.binary(node, &format!("{base}/Registry.bin"))?;
        self.text(node, &format!("{base}/CoreConfig.cfg"), &format!("kind = {kind}\nenabled = yes\n"))
    }

    fn binary(&mut self, node: &str, path: &str) -> io::Result<()> {
        let mut content = vec![0; self.random.random_range(400..4_000)];
        self.random.fill_bytes(&mut content);
        self.file(node, path, &content)
    }

    fn text(&mut self, node: &str, path: &str, content: &str) -> io::Result<()> {
        self.file(node, path, content.as_bytes())
    }

    fn messages(&mut self, node: &str, folder: &str, domain: &str, count: u32) -> io::Result<()> {
        for number in 1..=count {
            self.sample.messages += 1;
            let content = self.message(domain, number);
            self.file(node, &format!("{folder}/{number}.eml"), &content)?;
        }
        Ok(())
    }

    /// A mail: headers and lines of letters, as long as the distribution says.
    fn message(&mut self, domain: &str, number: u32) -> Vec<u8> {
        let wanted = (MEDIAN_BYTES * (SIGMA * self.normal()).exp()).min(MESSAGE_BYTES_MAX) as usize;
        let id: u64 = self.random.random();
        let mut mail = format!(
            "From: sender-{}@{domain}\r\nTo: recipient@{domain}\r\nSubject: Message {number}\r\n\
             Message-ID: <{id:016x}@{domain}>\r\nMIME-Version: 1.0\r\n\
             Content-Type: text/plain; charset=utf-8\r\n\r\n",
            self.random.random_range(0..100)
        )
        .into_bytes();
        let mut noise = [0; 57];
        while mail.len() < wanted {
            self.random.fill_bytes(&mut noise);
            mail.extend(noise.iter().map(|byte| b' ' + byte % 94));
            mail.extend(b"\r\n");
        }
        mail
    }

    /// Standard normal, by Box and Muller.
    fn normal(&mut self) -> f64 {
        let (radius, angle): (f64, f64) = (self.random.random_range(f64::EPSILON..1.0), self.random.random());
        (-2.0 * radius.ln()).sqrt() * (std::f64::consts::TAU * angle).cos()
    }

    fn file(&mut self, node: &str, path: &str, content: &[u8]) -> io::Result<()> {
        let path = self.nodes.join(node).join(path);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&path, content)?;
        // Some time in the three years from 2023 on.
        let age = Duration::from_secs(1_672_531_200 + self.random.random_range(0..94_608_000));
        let modified: SystemTime = UNIX_EPOCH + age;
        fs::File::options().write(true).open(&path)?.set_modified(modified)?;
        self.sample.files += 1;
        self.sample.bytes += content.len() as u64;
        Ok(())
    }
}

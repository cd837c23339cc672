//! The documents beside the sources: a path, a type, a key, a metric, a flag or a message that a page cites exists.
//!
//! What it reads: the pages, and every source of the project but itself. Where a source stands does not matter, except for
//! cited paths.
//! What it never does: start a program.

#![allow(clippy::unwrap_used)] // helpers of tests, which clippy does not know as such

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Code spans that the sources do not have, with the reason. A span is exempt as a whole.
const EXCEPTIONS: &[(&str, &[&str])] = &[
    (
        "flags of FTP clients",
        &[
            "--ftp-create-dirs",
            "--max-time",
            "--multi-thread-streams 0",
            "--no-ftp-skip-pasv-ip",
            "--overwrite",
            "--quote \"ALLO <bytes of the file>\"",
            "--retry",
            "--ssl-reqd",
            "--transfers 1",
            "encoding = Slash",
        ],
    ),
    (
        "functions of FTP libraries",
        &["getbinaryfile", "gettextfile", "prot_p()", "putbinaryfile", "puttextfile"],
    ),
    ("what the FTP library says", &["450 File not found"]),
    ("what the TLS library says", &["BadSignature", "NotValidForName", "not valid yet"]),
    (
        "settings and flags of Linux",
        &[
            "MSG_TRUNC",
            "net.netfilter.nf_conntrack_max",
            "net.netfilter.nf_conntrack_tcp_timeout_time_wait",
            "notrack",
            "somaxconn",
        ],
    ),
    ("variables that the library of OTLP reads", &["OTEL_EXPORTER_OTLP_HEADERS", "OTEL_RESOURCE_ATTRIBUTES"]),
    ("fields of Kubernetes", &["ca.crt", "limits.memory", "tls.crt", "tls.key"]),
    ("paths of the virtual tree", &["below/deep.eml", "cluster/", "domains/", "users/anna", "users/LOCAL"]),
    ("forms, not names", &["\"name\" first end", "CONTAINER/NAME", "UTIME time name"]),
    ("made by the benchmark", &["bench-results/latest.md"]),
    ("a crate that is not used", &["governor"]),
    ("a key that is gone, in the changelog", &["sessions_max"]),
];

/// Programs of others, and commands within lftp: the rest of a command line is theirs.
const FOREIGN_PROGRAMS: &[&str] = &["curl", "kubectl", "lftp", "mirror", "openssl", "promtool", "set"];

/// Folders that are built or fetched, and hold no sources of the project.
const PASSED_OVER: &[&str] = &["target", "node_modules", "bench-results"];

struct Source {
    path: String,
    /// Without whole-line comments; a string literal that goes on in the next line is joined.
    text: String,
    words: BTreeSet<String>,
}

struct Project {
    root: PathBuf,
    /// Files and folders, from the root on, folders with `/` at the end.
    paths: BTreeSet<String>,
    sources: Vec<Source>,
    words: BTreeSet<String>,
}

impl Project {
    fn read() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned();
        let (mut paths, mut sources) = (BTreeSet::new(), Vec::new());
        let mut folders = vec![String::new()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(root.join(&folder)).unwrap() {
                let entry = entry.unwrap();
                let name = entry.file_name().into_string().unwrap();
                if name.starts_with('.') || PASSED_OVER.contains(&name.as_str()) {
                    continue;
                }
                let path = format!("{folder}{name}");
                if entry.file_type().unwrap().is_dir() {
                    folders.push(format!("{path}/"));
                    paths.insert(format!("{path}/"));
                    continue;
                }
                if is_source(&path) {
                    sources.push(Source::read(&root, path.clone()));
                }
                paths.insert(path);
            }
        }
        let words = sources.iter().flat_map(|source| source.words.iter().cloned()).collect();
        Self { root, paths, sources, words }
    }

    /// The pages that are checked. Of the changelog only the newest section: the others speak of what was.
    fn pages(&self) -> Vec<(String, String)> {
        let top = ["README.md", "SECURITY.md", "ARCHITECTURE.md", "CHANGELOG.md"];
        let pages = self.paths.iter().filter(|path| {
            top.contains(&path.as_str()) || path.starts_with("docs/") || path.as_str() == "k8s/README.md"
        });
        let read = |path: &String| {
            let text = fs::read_to_string(self.root.join(path)).unwrap();
            let newest = text.match_indices("\n## ").nth(1).filter(|_| path == "CHANGELOG.md");
            (path.clone(), newest.map_or(text.clone(), |(end, _)| text[..end].to_owned()))
        };
        let pages: Vec<_> = pages.filter(|path| path.ends_with(".md")).map(read).collect();
        assert!(pages.len() > 10, "{pages:?}");
        pages
    }

    fn sources_below<'a>(&'a self, folder: &'a str) -> impl Iterator<Item = &'a Source> {
        self.sources.iter().filter(move |source| source.path.starts_with(folder))
    }

    /// A path as cited: from the root on, or the tail of a path, as `disk/commit.rs` is.
    fn has_path(&self, cited: &str) -> bool {
        let is_cited = |path: &String| {
            let path = path.trim_end_matches('/');
            path.strip_suffix(cited).is_some_and(|before| before.is_empty() || before.ends_with('/'))
        };
        match cited.strip_suffix('/') {
            Some(folder) => self.paths.iter().any(|path| {
                let path = path.strip_suffix('/');
                path.and_then(|path| path.strip_suffix(folder))
                    .is_some_and(|before| before.is_empty() || before.ends_with('/'))
            }),
            None => self.paths.iter().any(is_cited),
        }
    }

    /// `place::item`, where the place is a module, a type or a crate, and the item is defined in one of its files.
    fn has_item(&self, place: &str, item: &str) -> bool {
        let of_crate = place.strip_prefix("portolan_").map(|name| {
            self.sources_below("").filter(move |source| {
                source.path.ends_with("/Cargo.toml") && source.text.contains(&format!("\"portolan-{name}\""))
            })
        });
        let crates: Vec<_> = of_crate.into_iter().flatten().collect();
        self.sources.iter().any(|source| {
            let is_there = source.words.contains(item) || is_module(&source.path, item);
            let is_place = source.words.contains(place)
                || is_module(&source.path, place)
                || crates.iter().any(|of| source.path.starts_with(of.path.trim_end_matches("Cargo.toml")));
            is_there && is_place
        })
    }

    /// A metric by the name that Prometheus shows: without the prefix, the unit and the suffix of its kind it is
    /// registered somewhere.
    fn has_metric(&self, name: &str) -> bool {
        let suffixes = ["", "_total", "_bucket", "_sum", "_count", "_info"];
        let names = suffixes.iter().filter_map(|suffix| name.strip_suffix(suffix));
        let names = names.flat_map(|name| {
            ["", "_seconds", "_bytes"].iter().filter_map(move |unit| name.strip_suffix(unit))
        });
        let mut names = names.flat_map(|name| {
            ["", "portolan_", "portolan_agent_"].iter().filter_map(move |prefix| name.strip_prefix(prefix))
        });
        names.any(|name| self.has_text(&format!("\"{name}\"")))
    }

    fn has_text(&self, text: &str) -> bool {
        self.sources.iter().any(|source| is_program(&source.path) && source.text.contains(text))
    }

    /// A word of the language of the configuration: a key, or a value.
    fn has_key(&self, key: &str) -> bool {
        self.sources_below("cluster-config/src/").any(|source| source.words.contains(key))
    }

    /// A flag of one of our programs. clap makes it of a field's name, unless another name is given.
    fn has_flag(&self, flag: &str) -> bool {
        let field = flag.trim_start_matches('-').replace('-', "_");
        self.has_text(&format!("\"{}\"", flag.trim_start_matches('-')))
            || self.sources.iter().any(|source| {
                source.text.contains("#[arg(long") && source.text.contains(&format!("{field}: "))
            })
            || flag == "--help"
    }

    fn has_function(&self, name: &str) -> bool {
        self.has_text(&format!("fn {name}(")) || self.has_text(&format!("fn {name}<"))
    }

    /// A message, of which a page may leave out what differs: `...`, `X`, a number.
    fn has_message(&self, message: &str) -> bool {
        let is_left_out = |word: &str| {
            let word = word.trim_matches(|sign: char| !sign.is_alphanumeric());
            word.len() < 2 && word != "a" || word.chars().all(|sign| sign.is_ascii_digit() || sign == 'X')
        };
        let words: Vec<_> = message.split(' ').collect();
        let mut parts = words.split(|word| is_left_out(word)).filter(|part| part.len() > 1);
        parts.all(|part| {
            let part = part.join(" ").to_lowercase();
            let part = part.trim_end_matches(['.', ';', ':', ',']);
            let mut sources = self.sources.iter().filter(|source| is_program(&source.path));
            sources.any(|source| source.text.to_lowercase().contains(part))
        })
    }

    /// What is wrong with a code span of a page, if anything.
    fn fault(&self, span: &str) -> Option<&'static str> {
        if EXCEPTIONS.iter().any(|(_, spans)| spans.contains(&span)) {
            return None;
        }
        let (first, rest) = span.split_once(' ').unwrap_or((span, ""));
        if FOREIGN_PROGRAMS.contains(&first) {
            return None;
        }
        let none_unless = |is_right: bool, fault| (!is_right).then_some(fault);
        if span.starts_with("--") {
            return none_unless(self.has_flag(first.split('=').next()?), "no such flag");
        }
        if first.starts_with("portolan") && !rest.is_empty() {
            let is_flag = |word: &&str| word.starts_with("--");
            let subcommand = rest.split(' ').next().filter(|word| first == "portolan" && is_word(word));
            return none_unless(
                rest.split(' ').filter(is_flag).all(|flag| self.has_flag(flag))
                    && subcommand.is_none_or(|name| self.has_subcommand(name)),
                "no such command",
            );
        }
        if is_path(span) {
            return none_unless(expand(span).iter().all(|path| self.has_path(path)), "no such path");
        }
        if let Some((places, item)) = span.rsplit_once("::")
            && is_identifier(item)
            && places.split("::").all(is_identifier)
        {
            let place = places.rsplit("::").next()?;
            let starts = places.split("::").next()?;
            return none_unless(self.has_item(place, item) && self.has_item(starts, place), "no such item");
        }
        if let Some(name) = span.strip_suffix("()") {
            return none_unless(self.has_function(name), "no such function");
        }
        if is_identifier(span) && (span.starts_with("portolan_") || span.starts_with("process_")) {
            return none_unless(self.has_metric(span), "no such metric");
        }
        let table = span.trim_start_matches('[').trim_end_matches(']');
        let key = span.split(" = ").next()?;
        if table != span && is_key(table) {
            return none_unless(table.split('.').all(|part| self.has_key(part)), "no such table");
        }
        if is_key(key) && (key != span || key.contains('.')) {
            return none_unless(key.split('.').all(|part| self.has_key(part)), "no such key");
        }
        if let Some(value) = span.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) {
            return none_unless(!is_word(value) || self.has_text(span), "no such value");
        }
        if is_identifier(span) && span.len() > 1 {
            return none_unless(self.words.contains(span), "no such word in the sources");
        }
        let sentence: Vec<_> = span.split(' ').collect();
        if sentence.len() > 2 && !span.contains(['=', '<', '|', '/', '[', '{', '_', '$']) {
            return none_unless(self.has_message(span), "no such message");
        }
        None
    }

    fn has_subcommand(&self, name: &str) -> bool {
        let mut variant = name[..1].to_uppercase();
        variant.push_str(&name[1..]);
        self.words.contains(&variant)
    }
}

impl Source {
    fn read(root: &Path, path: String) -> Self {
        let text = fs::read_to_string(root.join(&path)).unwrap();
        let is_code = |line: &&str| !line.trim_start().starts_with("//") || path.ends_with(".proto");
        let mut code = String::with_capacity(text.len());
        for line in text.lines().filter(is_code) {
            if code.ends_with('\\') {
                code.pop();
                code.push_str(line.trim_start());
            } else {
                code.push('\n');
                code.push_str(line);
            }
        }
        let words = code.split(|sign: char| !sign.is_alphanumeric() && sign != '_');
        let words = words.filter(|word| !word.is_empty()).map(str::to_owned).collect();
        Self { path, text: code, words }
    }
}

fn is_source(path: &str) -> bool {
    let kinds = [".rs", ".proto", ".toml", ".yml", ".yaml", ".py", ".service", ".sample"];
    let is_built = ["build-deb", "Dockerfile", "rootfs", "tests/run", "tests/containers"];
    // What was in earlier versions says nothing about this one.
    let is_past = path.contains("/released/") || path.contains("/earlier/");
    !is_past
        && (kinds.iter().any(|kind| path.ends_with(kind)) || is_built.iter().any(|name| path.ends_with(name)))
        && !path.ends_with("tests/tests/documents.rs")
}

/// Whether what stands in a file is shown by a program; a test that expects a message does not make it exist.
fn is_program(path: &str) -> bool {
    path.ends_with(".rs") && !path.starts_with("tests/tests/")
}

/// Whether a file is the module `name`, or in the folder of it.
fn is_module(path: &str, name: &str) -> bool {
    path.split('/').any(|part| part == name || part.strip_suffix(".rs") == Some(name))
}

fn is_identifier(span: &str) -> bool {
    span.starts_with(|sign: char| sign.is_ascii_alphabetic())
        && span.chars().all(|sign| sign.is_ascii_alphanumeric() || sign == '_')
}

fn is_word(span: &str) -> bool {
    span.starts_with(|sign: char| sign.is_ascii_lowercase())
        && span.chars().all(|sign| sign.is_ascii_lowercase() || sign.is_ascii_digit() || sign == '-')
}

fn is_key(span: &str) -> bool {
    let is_part = |part: &str| is_identifier(part) && !part.contains(|sign: char| sign.is_ascii_uppercase());
    span.split('.').all(is_part)
}

/// Paths of the project begin with no `/`: those are of the virtual tree, or of a machine.
fn is_path(span: &str) -> bool {
    let kinds = [".rs", ".md", ".toml", ".proto", ".py", ".yaml", ".yml", ".json", ".js", ".service"];
    !span.contains([' ', ':', '<', '"', '=', '*', '\\'])
        && !span.starts_with(['/', '.'])
        && (span.trim_end_matches('/').contains('/')
            || kinds.iter().any(|kind| span.ends_with(kind))
            || span.ends_with('/'))
}

/// `a/{b,c}.rs` is two paths.
fn expand(span: &str) -> Vec<String> {
    let braces = span.split_once('{').and_then(|(before, rest)| Some((before, rest.split_once('}')?)));
    let Some((before, (names, after))) = braces else { return vec![span.to_owned()] };
    names.split(',').map(|name| format!("{before}{}{after}", name.trim())).collect()
}

/// The lines of a page outside of its blocks of code, each with its number.
fn prose(text: &str) -> Vec<(usize, &str)> {
    let mut is_fenced = false;
    let (mut lines, mut is_after_blank, mut is_indented) = (Vec::new(), true, false);
    for (number, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            is_fenced = !is_fenced;
            continue;
        }
        // An indented block begins after a blank line; in a list it is indented further than the item's text.
        is_indented =
            line.starts_with("    ") && (is_indented || is_after_blank) || is_indented && line.is_empty();
        is_after_blank = line.is_empty();
        if !is_fenced && !is_indented {
            lines.push((number + 1, line));
        }
    }
    lines
}

/// The code spans of a page, with their lines. One that goes over a line end is joined.
fn spans(text: &str) -> Vec<(usize, String)> {
    let (mut spans, mut open) = (Vec::new(), None::<(usize, String)>);
    for (number, line) in prose(text) {
        if line.is_empty() {
            assert!(open.is_none(), "a code span is not closed: {open:?}");
        }
        for (index, part) in line.split('`').enumerate() {
            if index > 0 {
                match open.take() {
                    Some(span) => spans.push(span),
                    None => open = Some((number, String::new())),
                }
            }
            if let Some((_, span)) = &mut open {
                let blank = if index == 0 && !span.is_empty() { " " } else { "" };
                span.push_str(blank);
                span.push_str(if index == 0 { part.trim_start() } else { part });
            }
        }
    }
    spans
}

/// The name by which a heading is linked to.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().chars().filter(|sign| sign.is_alphanumeric() || [' ', '-', '_'].contains(sign));
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}

#[test]
fn what_the_pages_cite_exists() {
    let project = Project::read();
    let mut faults = Vec::new();
    for (page, text) in project.pages() {
        let found = spans(&text);
        let wrong = found.iter().filter_map(|(line, span)| Some((line, span, project.fault(span)?)));
        faults.extend(wrong.map(|(line, span, fault)| format!("{page}:{line}: `{span}`: {fault}")));
    }
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

#[test]
fn what_is_made_up_is_a_fault() {
    let project = Project::read();
    for nowhere_seen in [
        "--nowhere-seen",
        "portolan nowhere-seen",
        "portolan status --nowhere-seen",
        "frontend/src/nowhere_seen.rs",
        "nowhere_seen.rs",
        "nowhere/seen/",
        "NowhereSeen",
        "nowhere_seen",
        "gate::nowhere_seen",
        "nowhere_seen::Gate",
        "nowhere_seen()",
        "portolan_nowhere_seen_total",
        "[[nowhere_seen]]",
        "log.nowhere_seen",
        "nowhere_seen = true",
        "\"nowhere-seen\"",
        "this message is seen nowhere",
        "450 Node X is seen nowhere",
    ] {
        assert!(project.fault(nowhere_seen).is_some(), "{nowhere_seen}");
    }
}

#[test]
fn links_lead_somewhere() {
    let project = Project::read();
    let pages: BTreeMap<_, _> = project.pages().into_iter().collect();
    let mut faults = Vec::new();
    for (page, text) in &pages {
        let folder = Path::new(page).parent().unwrap();
        for (line, target) in prose(text).into_iter().flat_map(|(line, text)| {
            let targets = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
            targets.map(move |target| (line, target))
        }) {
            if target.contains("://") {
                continue;
            }
            let (file, heading) = target.split_once('#').unwrap_or((target, ""));
            let path = if file.is_empty() { PathBuf::from(page) } else { folder.join(file) };
            if !project.root.join(&path).try_exists().unwrap() {
                faults.push(format!("{page}:{line}: {target}: no such file"));
                continue;
            }
            if !heading.is_empty() {
                let text = fs::read_to_string(project.root.join(&path)).unwrap();
                let mut headings = text.lines().filter(|line| line.starts_with('#'));
                if !headings.any(|line| anchor(line.trim_start_matches('#')) == heading) {
                    faults.push(format!("{page}:{line}: {target}: no such heading"));
                }
            }
        }
    }
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

#[test]
fn every_key_is_on_the_page_of_the_configuration() {
    let project = Project::read();
    let page = fs::read_to_string(project.root.join("docs/configuration.md")).unwrap();
    let cited = spans(&page);
    let cited: BTreeSet<_> =
        cited.iter().flat_map(|(_, span)| span.split([' ', '.', '[', ']', ':'])).collect();
    let raw = project.sources.iter().find(|source| source.path == "cluster-config/src/raw.rs").unwrap();
    // Before the first table stands what all of them are made of.
    let (_, tables) = raw.text.split_once("struct Frontend ").unwrap();
    let fields = tables.lines().filter_map(|line| line.trim().strip_prefix("pub(crate) "));
    let keys = fields.filter_map(|field| field.split_once(": ")).map(|(key, _)| key);
    let keys: BTreeSet<_> = keys.filter(|key| is_key(key)).collect();
    assert!(keys.len() > 50, "{keys:?}");
    let missing: Vec<_> = keys.iter().filter(|key| !cited.contains(**key)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

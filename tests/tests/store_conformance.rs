//! Every kind of store does what the contract says, method by method, and fails as it says.

use std::collections::BTreeSet;
use std::time::Duration;

use portolan_agent::store::{Begin, Error, Holdings, Kind, ListOptions, Operation, Permissions, Wanted};
use portolan_tests::conformance::{ANY, Item, PUT_NS, SORTED, each, finish, path, rest, whole};
use portolan_tests::eventually;
use tokio_util::sync::CancellationToken;

const ANNA: &str = "domains/one.example/users/anna";
const MAIL: &str = "domains/one.example/users/anna/mail.eml";

const PLAIN: Begin = Begin { offset: 0, modified_ns: None, exclusive: false, append: false };
const EXCLUSIVE: Begin = Begin { exclusive: true, ..PLAIN };
const APPEND: Begin = Begin { append: true, ..PLAIN };

macro_rules! refused {
    ($outcome:expr, $variant:ident) => {
        match $outcome {
            Err(Error::$variant { .. }) => {}
            other => {
                panic!("{} is not {} but {:?}", stringify!($outcome), stringify!($variant), other.map(drop))
            }
        }
    };
}

fn below_anna(name: &str) -> String {
    format!("{ANNA}/{name}")
}

/// A change that the kind is able to make.
macro_rules! able {
    ($outcome:expr) => {
        match $outcome {
            Some(outcome) => outcome,
            None => return,
        }
    };
}

#[test]
fn a_store_says_what_it_is_and_how_much_room_it_has() {
    each(|site| {
        assert!(!site.store.kind().is_empty());
        assert!(site.store.rescan_interval() > Duration::ZERO);
        let usage = site.store.usage().unwrap();
        assert!(usage.bytes_total > 0 && usage.bytes_free <= usage.bytes_total);
    });
}

#[test]
fn holdings_are_the_domains_and_their_objects() {
    let shown = |holdings: &Holdings| -> Vec<String> {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let domains = holdings.domains.iter();
        domains
            .flat_map(|(domain, objects)| {
                let objects: Vec<String> =
                    objects.iter().map(|object| format!("{}: {}", text(domain), text(object))).collect();
                [vec![text(domain)], objects].concat()
            })
            .collect()
    };
    let only = |domain: &[u8]| BTreeSet::from([domain.to_vec()]);
    each(|site| {
        assert!(site.store.holdings(None).unwrap().domains.is_empty(), "an empty store is no error");
        site.put(MAIL, Item::File(b"abc"));
        site.put("domains/one.example/registry.bin", Item::File(b"abc"));
        site.put("domains/one.example/other/x", Item::File(b"abc"));
        site.put("domains/two.example", Item::Directory);
        // What cannot be looked into is announced all the same.
        site.put("domains/stray", Item::File(b"abc"));
        let expected = [
            "one.example",
            "one.example: other",
            "one.example: registry.bin",
            "one.example: users/anna",
            "stray",
            "two.example",
        ];
        let first = site.store.holdings(None).unwrap();
        assert_eq!(shown(&first), expected);
        let again = site.store.holdings(None).unwrap();
        assert!(again.changes_since(&first).is_empty());
        site.put("domains/one.example/users/bob/mail.eml", Item::File(b"abc"));
        site.put("domains/two.example/groups/x", Item::Directory);
        let touched = site.store.holdings(Some(&only(b"one.example"))).unwrap();
        assert!(shown(&touched).contains(&"one.example: users/bob".to_owned()), "{touched:?}");
        assert!(shown(&touched).contains(&"two.example".to_owned()), "the others are told too: {touched:?}");
        let found = shown(&site.store.holdings(None).unwrap());
        assert!(found.contains(&"two.example: groups/x".to_owned()), "{found:?}");
        site.put("domains/stray", Item::Gone);
        site.put("domains/one.example/registry.bin", Item::Gone);
        for _ in 0..2 {
            let both = BTreeSet::from([b"one.example".to_vec(), b"stray".to_vec()]);
            let found = shown(&site.store.holdings(Some(&both)).unwrap());
            let gone = ["stray", "one.example: registry.bin"];
            assert!(found.iter().all(|found| !gone.contains(&&**found)), "{found:?}");
        }
    });
    each(|site| {
        site.put(MAIL, Item::File(b"abc"));
        let nothing = BTreeSet::new();
        let found = shown(&site.store.holdings(Some(&nothing)).unwrap());
        assert_eq!(found, ["one.example", "one.example: users/anna"], "the first answer is whole");
    });
}

#[test]
fn an_entry_is_what_is_at_the_path() {
    each(|site| {
        site.put(MAIL, Item::File(b"abc"));
        let stat = |at: &str| site.store.stat(&path(at));
        let mail = stat(MAIL).unwrap();
        assert_eq!((&mail.name[..], mail.kind, mail.size), (&b"mail.eml"[..], Kind::File, 3));
        assert_eq!((mail.modified_ns, mail.unix_mode & !0o7777), (PUT_NS, 0));
        assert!(mail.target.is_empty());
        let anna = stat(ANNA).unwrap();
        assert_eq!((&anna.name[..], anna.kind, anna.size), (&b"anna"[..], Kind::Directory, 0));
        let root = stat("").unwrap();
        assert_eq!((&root.name[..], root.kind), (&b""[..], Kind::Directory));
        refused!(stat(&below_anna("missing")), NotFound);
        refused!(stat(&below_anna("missing/mail.eml")), NotFound);
        refused!(stat(&format!("{MAIL}/x")), NotADirectory);
        let other = below_anna("other.eml");
        site.put(&other, Item::File(b"abc"));
        if mail.identity.is_some() {
            assert_ne!(stat(&other).unwrap().identity, mail.identity);
            assert_ne!(anna.identity, mail.identity);
        }
        let second = below_anna("second.eml");
        if site.try_put(&second, Item::SecondName(MAIL.as_bytes())) {
            assert_eq!(stat(&second).unwrap().identity, mail.identity);
        } else {
            refused!(stat(&second), NotFound);
        }
        let pipe = below_anna("pipe");
        if site.try_put(&pipe, Item::Pipe) {
            let pipe = stat(&pipe).unwrap();
            assert_eq!((pipe.kind, pipe.size), (Kind::Pipe, 0));
        } else {
            refused!(stat(&pipe), NotFound);
        }
        let link = below_anna("link");
        if site.try_put(&link, Item::Link(b"../anna")) {
            let found = stat(&link).unwrap();
            assert_eq!((found.kind, found.size, &found.target[..]), (Kind::Symlink, 0, &b"../anna"[..]));
            refused!(stat(&below_anna("link/mail.eml")), NotAFile);
        } else {
            refused!(stat(&link), NotFound);
        }
        // The listing says the same.
        for entry in site.entries(ANNA, ANY).unwrap() {
            let name = String::from_utf8(entry.name.clone()).unwrap();
            assert_eq!(stat(&below_anna(&name)).unwrap(), entry);
        }
    });
}

#[test]
fn a_listing_is_whole_and_in_the_order_that_was_asked_for() {
    each(|site| {
        for name in ["b.eml", "a.eml", "c.eml", "B.eml"] {
            site.put(below_anna(name), Item::File(b""));
        }
        for name in ["sub", "Sub"] {
            site.put(below_anna(name), Item::Directory);
        }
        let all = ["B.eml", "Sub", "a.eml", "b.eml", "c.eml", "sub"];
        assert_eq!(site.names(ANNA), all);
        let mut unsorted: Vec<Vec<u8>> =
            site.entries(ANNA, ANY).unwrap().into_iter().map(|entry| entry.name).collect();
        unsorted.sort();
        assert_eq!(unsorted, all.map(|name| name.as_bytes().to_vec()));
        let directories = ListOptions { wanted: Wanted::Directories, ..SORTED };
        let found = site.entries(ANNA, directories).unwrap();
        assert!(found.iter().all(|entry| entry.kind == Kind::Directory));
        assert_eq!(found.len(), 2);
        assert!(site.entries(below_anna("sub"), ANY).unwrap().is_empty());
        refused!(site.entries(below_anna("missing"), ANY), NotFound);
        refused!(site.entries(below_anna("missing/x"), ANY), NotFound);
        refused!(site.entries(below_anna("a.eml"), ANY), NotADirectory);
        if site.try_put(below_anna("link"), Item::Link(b"sub")) {
            refused!(site.entries(below_anna("link"), ANY), NotAFile);
            refused!(site.entries(below_anna("link/x"), ANY), NotAFile);
        }
    });
}

#[test]
fn a_large_directory_comes_whole_in_batches() {
    const NAMES: usize = 20_000;
    each(|site| {
        for number in 0..NAMES {
            site.put(below_anna(&format!("many/{number:05}")), Item::File(b""));
        }
        for options in [ANY, SORTED] {
            let stop = CancellationToken::new();
            let mut listing = site.store.list(&path(below_anna("many")), options, &stop).unwrap();
            let entries = rest(&mut *listing, 1_000).unwrap();
            if options.sorted {
                assert!(entries.is_sorted_by(|one, next| one.name < next.name));
            }
            let names: BTreeSet<&[u8]> = entries.iter().map(|entry| &entry.name[..]).collect();
            assert_eq!((entries.len(), names.len()), (NAMES, NAMES), "each once");
        }
        let stop = CancellationToken::new();
        let mut begun = site.store.list(&path(below_anna("many")), ANY, &stop).unwrap();
        assert!(!begun.next_batch(10).unwrap().is_empty());
        stop.cancel();
        refused!(begun.next_batch(10), Stopped);
        refused!(site.store.list(&path(below_anna("many")), ANY, &stop), Stopped);
    });
}

#[test]
fn what_others_do_during_a_listing_leaves_no_gap_in_it() {
    each(|site| {
        for number in 0..20 {
            site.put(below_anna(&format!("{number:02}")), Item::File(b""));
        }
        let open = |options| site.store.list(&path(ANNA), options, &CancellationToken::new()).unwrap();
        let (mut sorted, mut any) = (open(SORTED), open(ANY));
        site.put(below_anna("new"), Item::MovedFrom(below_anna("07").as_bytes()));
        site.put(below_anna("08"), Item::Gone);
        refused!(rest(&mut *sorted, 7), Changing);
        let names: BTreeSet<Vec<u8>> =
            rest(&mut *any, 7).unwrap().into_iter().map(|entry| entry.name).collect();
        let renamed = names.contains(&b"07"[..]) || names.contains(&b"new"[..]);
        assert!(renamed, "a renamed file is there under one of its names");
        let others = (0..20).filter(|number| !matches!(number, 7 | 8));
        assert!(others.into_iter().all(|number| names.contains(format!("{number:02}").as_bytes())));
    });
}

#[test]
fn a_directory_is_known_whatever_its_name() {
    each(|site| {
        for name in ["one", "other"] {
            site.put(below_anna(&format!("{name}/{name}.eml")), Item::File(b""));
        }
        let one = path(below_anna("one"));
        let open = |options| site.store.list(&one, options, &CancellationToken::new());
        let before = open(ANY).unwrap().directory();
        assert_eq!((&before.name[..], open(SORTED).unwrap().directory()), (&b"one"[..], before.clone()));
        site.put(below_anna("one/new.eml"), Item::File(b""));
        let changed = open(ANY).unwrap().directory();
        assert_eq!(changed.identity, before.identity);
        assert_ne!(changed.state, before.state, "its names have changed");
        let was = ListOptions { was: Some(before.identity), ..ANY };
        site.put(below_anna("two"), Item::MovedFrom(below_anna("one").as_bytes()));
        let mut renamed = open(was).unwrap();
        assert_eq!(
            (renamed.directory().identity, &renamed.directory().name[..]),
            (before.identity, &b"two"[..])
        );
        assert_eq!(rest(&mut *renamed, 10).unwrap().len(), 2);
        site.put(below_anna("one"), Item::MovedFrom(below_anna("other").as_bytes()));
        assert_eq!(open(was).unwrap().directory().name, b"two", "another one stands at the path");
        assert_ne!(open(ANY).unwrap().directory().identity, before.identity);
        // A name of a domain is a grant: another one is never looked for.
        let domain = path("domains/one.example");
        let identity = site.store.list(&domain, ANY, &CancellationToken::new()).unwrap().directory().identity;
        site.put("domains/two.example", Item::MovedFrom(b"domains/one.example"));
        let was = ListOptions { was: Some(identity), ..ANY };
        refused!(site.store.list(&domain, was, &CancellationToken::new()), NotFound);
    });
}

#[test]
fn content_is_of_the_file_that_was_opened() {
    each(|site| {
        site.put(MAIL, Item::File(b"0123456789"));
        let mut mail = site.store.read(&path(MAIL)).unwrap();
        assert_eq!((mail.size(), mail.modified_ns()), (10, PUT_NS));
        assert_eq!(mail.version_now().unwrap(), mail.version());
        let mut buffer = [0; 4];
        for (offset, expected) in [(0, &b"0123"[..]), (4, b"4567"), (8, b"89"), (10, b""), (1 << 40, b"")] {
            let count = mail.read_at(&mut buffer, offset).unwrap();
            assert_eq!(&buffer[..count], expected, "{offset}");
        }
        site.put(below_anna("empty.eml"), Item::File(b""));
        assert_eq!(site.content(below_anna("empty.eml")), b"");
        refused!(site.store.read(&path(ANNA)), IsADirectory);
        refused!(site.store.read(&path("")), IsADirectory);
        refused!(site.store.read(&path(below_anna("missing"))), NotFound);
        refused!(site.store.read(&path(below_anna("missing/x"))), NotFound);
        refused!(site.store.read(&path(format!("{MAIL}/x"))), NotADirectory);
        for (name, item) in [("link", Item::Link(b"mail.eml")), ("pipe", Item::Pipe)] {
            if site.try_put(below_anna(name), item) {
                refused!(site.store.read(&path(below_anna(name))), NotAFile);
            }
        }
        // Replaced while it is open.
        site.put(MAIL, Item::File(b"another"));
        assert_eq!(whole(&mut *mail), b"0123456789");
        assert!(mail.version_now().unwrap().is_content_of(&mail.version()));
        let fresh = site.store.read(&path(MAIL)).unwrap();
        assert!(!fresh.version().is_content_of(&mail.version()));
        // Removed while it is open.
        site.put(MAIL, Item::Gone);
        assert!(fresh.version_now().unwrap().is_content_of(&fresh.version()));
    });
}

#[test]
fn a_change_of_the_very_file_shows_in_its_version() {
    each(|site| {
        site.put(MAIL, Item::File(b"0123456789"));
        let mail = site.store.read(&path(MAIL)).unwrap();
        if let Some(set) =
            site.able(Operation::SetMode, site.store.set_mode(&path(MAIL), Permissions::new(0o604).unwrap()))
        {
            set.unwrap();
            let now = mail.version_now().unwrap();
            assert!(now != mail.version() && now.is_content_of(&mail.version()), "the content is the same");
        }
        let mut mail = site.store.read(&path(MAIL)).unwrap();
        if site.try_put(MAIL, Item::Overwritten(b"9876543210")) {
            let now = mail.version_now().unwrap();
            assert!(now != mail.version() && !now.is_content_of(&mail.version()));
            assert!(!mail.settle(), "a later change could come in the same tick of the clock");
        }
        let settled = eventually("the file is at rest", || {
            let mut mail = site.store.read(&path(MAIL)).unwrap();
            mail.settle().then_some(mail)
        });
        assert_eq!(settled.version_now().unwrap(), settled.version());
        assert_eq!(site.store.read(&path(MAIL)).unwrap().version(), settled.version());
        if site.try_put(MAIL, Item::Overwritten(b"0123456789")) {
            assert!(!settled.version_now().unwrap().is_content_of(&settled.version()));
        }
    });
}

#[test]
fn an_upload_is_not_visible_before_its_commit_and_whole_after_it() {
    each(|site| {
        let old = Begin { modified_ns: Some(PUT_NS + 5_000_000_000), ..PLAIN };
        let upload = able!(site.staged("domains/one.example/users/mail.eml", old, b"0123456789")).unwrap();
        refused!(site.store.stat(&path("domains")), NotFound);
        drop(upload);
        refused!(site.store.stat(&path("domains")), NotFound);
        site.put(ANNA, Item::Directory);
        let upload = site.staged(MAIL, old, b"0123456789").unwrap().unwrap();
        assert!(site.names(ANNA).is_empty());
        let committed = upload.commit().unwrap();
        let mut crc32 = flate2::Crc::new();
        crc32.update(b"0123456789");
        assert_eq!((committed.size, committed.crc32), (10, crc32.sum()));
        assert!(committed.modified_ns.abs_diff(PUT_NS + 5_000_000_000) < 2_000_000_000);
        assert_eq!(site.store.stat(&path(MAIL)).unwrap().modified_ns, committed.modified_ns);
        assert_eq!(site.content(MAIL), b"0123456789");
        // In place of the previous file, which stays until then.
        let upload = site.staged(MAIL, PLAIN, b"new").unwrap().unwrap();
        assert_eq!(site.content(MAIL), b"0123456789");
        drop(upload);
        assert_eq!((site.content(MAIL), site.names(ANNA)), (b"0123456789".to_vec(), vec!["mail.eml".into()]));
        let mut reading = site.store.read(&path(MAIL)).unwrap();
        assert_eq!(site.upload(MAIL, PLAIN, b"new").unwrap().unwrap().size, 3);
        assert_eq!((site.content(MAIL), whole(&mut *reading)), (b"new".to_vec(), b"0123456789".to_vec()));
        assert_eq!(site.upload(MAIL, PLAIN, b"").unwrap().unwrap().size, 0);
        assert_eq!(site.content(MAIL), b"");
    });
}

#[test]
fn an_upload_that_did_not_come_whole_changes_nothing() {
    each(|site| {
        site.put(MAIL, Item::File(b"before"));
        for at in [MAIL.to_owned(), below_anna("new.eml")] {
            for announced in [finish(b"01234"), finish(b"0123x"), finish(b"")] {
                let mut upload =
                    able!(site.able(Operation::Write, site.store.write(&path(&at), PLAIN))).unwrap();
                assert!(!upload.prepare().unwrap(), "there is nothing to take over");
                upload.write(b"0123").unwrap();
                refused!(upload.sync(announced), Damaged);
            }
        }
        assert_eq!((site.content(MAIL), site.names(ANNA)), (b"before".to_vec(), vec!["mail.eml".into()]));
    });
}

#[test]
fn an_upload_begins_only_where_a_file_may_be() {
    each(|site| {
        site.put(MAIL, Item::File(b"before"));
        let begin = |at: &str, begin| site.able(Operation::Write, site.store.write(&path(at), begin));
        refused!(able!(begin("", PLAIN)), PermissionDenied);
        refused!(begin(ANNA, PLAIN).unwrap(), IsADirectory);
        refused!(begin(ANNA, EXCLUSIVE).unwrap(), AlreadyExists);
        refused!(begin(MAIL, EXCLUSIVE).unwrap(), AlreadyExists);
        refused!(begin(&below_anna("missing/x"), PLAIN).unwrap(), NotFound);
        refused!(begin("domains/new.example/users/bob/x", PLAIN).unwrap(), NotFound);
        refused!(begin(&format!("{MAIL}/x"), PLAIN).unwrap(), NotADirectory);
        for (name, item) in [("link", Item::Link(b"mail.eml")), ("pipe", Item::Pipe)] {
            if site.try_put(below_anna(name), item) {
                refused!(begin(&below_anna(name), PLAIN).unwrap(), NotAFile);
            }
        }
        if site.try_put(below_anna("folder"), Item::Link(b".")) {
            refused!(begin(&below_anna("folder/x"), PLAIN).unwrap(), NotAFile);
        }
        assert_eq!(site.content(MAIL), b"before");
    });
}

#[test]
fn of_two_uploads_at_one_name_the_last_commit_stands_and_an_exclusive_one_fails() {
    each(|site| {
        let new = below_anna("new.eml");
        site.put(ANNA, Item::Directory);
        let first = able!(site.staged(&new, EXCLUSIVE, b"first")).unwrap();
        let second = site.staged(&new, EXCLUSIVE, b"second").unwrap().unwrap();
        first.commit().unwrap();
        refused!(second.commit(), AlreadyExists);
        assert_eq!(site.content(&new), b"first");
        let one = site.staged(&new, PLAIN, b"one").unwrap().unwrap();
        let two = site.staged(&new, PLAIN, b"two").unwrap().unwrap();
        two.commit().unwrap();
        one.commit().unwrap();
        assert_eq!((site.content(&new), site.names(ANNA)), (b"one".to_vec(), vec!["new.eml".into()]));
        // Something else has taken the name, or the folder is gone.
        let upload = site.staged(&below_anna("x"), PLAIN, b"x").unwrap().unwrap();
        site.put(below_anna("x"), Item::Directory);
        refused!(upload.commit(), IsADirectory);
        let upload = site.staged(&below_anna("x/y"), PLAIN, b"x").unwrap().unwrap();
        if let Some(removed) =
            site.able(Operation::RemoveDirectory, site.store.remove_directory(&path(below_anna("x"))))
        {
            removed.unwrap();
            refused!(upload.commit(), NotFound);
        }
    });
}

#[test]
fn an_upload_goes_on_from_the_file_that_is_there() {
    each(|site| {
        let at = |offset| Begin { offset, ..PLAIN };
        site.put(MAIL, Item::File(b"0123456789"));
        if let Some(done) = site.upload(MAIL, at(4), b"abc") {
            let done = done.unwrap();
            let mut crc32 = flate2::Crc::new();
            crc32.update(b"0123abc");
            assert_eq!((done.size, done.crc32, site.content(MAIL)), (7, crc32.sum(), b"0123abc".to_vec()));
            site.upload(MAIL, at(7), b"").unwrap().unwrap();
            assert_eq!(site.content(MAIL), b"0123abc", "at its very end, with nothing more");
            refused!(site.upload(MAIL, at(8), b"x").unwrap(), OffsetBeyondEnd);
            refused!(site.upload(&below_anna("missing"), at(1), b"x").unwrap(), NotFound);
            refused!(site.upload(ANNA, at(1), b"x").unwrap(), IsADirectory);
            let replaced = site.staged(MAIL, at(4), b"x").unwrap().unwrap();
            site.put(MAIL, Item::File(b"0123abc"));
            refused!(replaced.commit(), Changing);
            let removed = site.staged(MAIL, at(4), b"x").unwrap().unwrap();
            site.put(MAIL, Item::Gone);
            refused!(removed.commit(), Changing);
            site.put(MAIL, Item::File(b"0123456789"));
            let mut shrunk = site.store.write(&path(MAIL), at(8)).unwrap();
            if site.try_put(MAIL, Item::Overwritten(b"0123")) {
                refused!(shrunk.prepare(), OffsetBeyondEnd);
            }
        }
        site.put(MAIL, Item::File(b"0123456789"));
        if let Some(done) = site.upload(MAIL, APPEND, b"abc") {
            assert_eq!((done.unwrap().size, site.content(MAIL)), (13, b"0123456789abc".to_vec()));
            let new = below_anna("new.eml");
            assert_eq!(site.upload(&new, APPEND, b"abc").unwrap().unwrap().size, 3);
            refused!(site.upload(ANNA, APPEND, b"x").unwrap(), IsADirectory);
            let appeared = site.staged(&below_anna("late.eml"), APPEND, b"x").unwrap().unwrap();
            site.put(below_anna("late.eml"), Item::File(b"first"));
            refused!(appeared.commit(), Changing);
            assert_eq!(site.content(below_anna("late.eml")), b"first");
            let replaced = site.staged(&new, APPEND, b"x").unwrap().unwrap();
            site.put(&new, Item::File(b"abc"));
            refused!(replaced.commit(), Changing);
            assert_eq!(site.content(&new), b"abc");
        }
    });
}

#[test]
fn a_file_keeps_its_permissions_when_its_content_is_replaced() {
    each(|site| {
        site.put(MAIL, Item::File(b"before"));
        let mode = || site.store.stat(&path(MAIL)).unwrap().unix_mode & 0o777;
        let set = |bits| {
            let permissions = Permissions::new(bits).unwrap();
            site.able(Operation::SetMode, site.store.set_mode(&path(MAIL), permissions))
        };
        able!(set(0o604)).unwrap();
        able!(site.upload(MAIL, PLAIN, b"after")).unwrap();
        assert_eq!(mode(), 0o604);
        let upload = site.staged(MAIL, PLAIN, b"again").unwrap().unwrap();
        set(0o640).unwrap().unwrap();
        upload.commit().unwrap();
        assert_eq!((mode(), site.content(MAIL)), (0o640, b"again".to_vec()));
    });
}

#[test]
fn the_clusters_levels_are_made_with_what_needs_them_and_deeper_ones_are_not() {
    each(|site| {
        let make = |at: &str| site.able(Operation::MakeDirectory, site.store.make_directory(&path(at)));
        let is_there = |at: &str| site.store.stat(&path(at)).is_ok();
        if let Some(made) = make("domains/a.example/users/anna") {
            made.unwrap();
            assert!(is_there("domains/a.example/users/anna"));
            refused!(make("domains/b.example/users/bob/sub").unwrap(), NotFound);
            assert!(!is_there("domains/b.example"), "what a change has made is taken back");
            refused!(make("domains/a.example/users/anna").unwrap(), AlreadyExists);
            site.put(MAIL, Item::File(b"abc"));
            refused!(make(MAIL).unwrap(), AlreadyExists);
            refused!(make(&format!("{MAIL}/x")).unwrap(), NotADirectory);
            refused!(make("").unwrap(), PermissionDenied);
            if site.try_put(below_anna("link"), Item::Link(b".")) {
                refused!(make(&below_anna("link")).unwrap(), AlreadyExists);
                refused!(make(&below_anna("link/x")).unwrap(), NotAFile);
            }
        }
        if let Some(uploaded) = site.upload("domains/c.example/users/mail.eml", PLAIN, b"abc") {
            uploaded.unwrap();
            assert_eq!(site.content("domains/c.example/users/mail.eml"), b"abc");
        }
    });
}

#[test]
fn files_are_removed_as_files_and_directories_as_directories() {
    each(|site| {
        site.put(MAIL, Item::File(b"abc"));
        site.put(below_anna("full/x"), Item::File(b""));
        site.put(below_anna("empty"), Item::Directory);
        let remove = |at: &str| site.able(Operation::Remove, site.store.remove(&path(at)));
        let remove_directory =
            |at: &str| site.able(Operation::RemoveDirectory, site.store.remove_directory(&path(at)));
        if let Some(removed) = remove(&below_anna("empty")) {
            refused!(removed, IsADirectory);
            refused!(remove(&below_anna("missing")).unwrap(), NotFound);
            refused!(remove(&below_anna("missing/x")).unwrap(), NotFound);
            refused!(remove(&format!("{MAIL}/x")).unwrap(), NotADirectory);
            refused!(remove("").unwrap(), PermissionDenied);
            let mut reading = site.store.read(&path(MAIL)).unwrap();
            remove(MAIL).unwrap().unwrap();
            refused!(site.store.stat(&path(MAIL)), NotFound);
            assert_eq!(whole(&mut *reading), b"abc", "who has it open reads on");
            refused!(remove(MAIL).unwrap(), NotFound);
            for (name, item) in [("link", Item::Link(b"full")), ("pipe", Item::Pipe)] {
                if site.try_put(below_anna(name), item) {
                    remove(&below_anna(name)).unwrap().unwrap();
                    refused!(site.store.stat(&path(below_anna(name))), NotFound);
                }
            }
            assert_eq!(site.names(below_anna("full")), ["x"], "the link and not what it leads to");
        }
        site.put(MAIL, Item::File(b"abc"));
        if let Some(removed) = remove_directory(&below_anna("full")) {
            refused!(removed, NotEmpty);
            refused!(remove_directory(MAIL).unwrap(), NotADirectory);
            refused!(remove_directory(&below_anna("missing")).unwrap(), NotFound);
            refused!(remove_directory("").unwrap(), PermissionDenied);
            remove_directory(&below_anna("empty")).unwrap().unwrap();
            refused!(site.store.stat(&path(below_anna("empty"))), NotFound);
            if site.try_put(below_anna("link"), Item::Link(b"full")) {
                refused!(remove_directory(&below_anna("link")).unwrap(), NotADirectory);
            }
        }
    });
}

#[test]
fn a_rename_replaces_a_file_by_a_file_and_nothing_else() {
    each(|site| {
        for name in ["a", "b", "full/x"] {
            site.put(below_anna(name), Item::File(name.as_bytes()));
        }
        site.put(below_anna("empty"), Item::Directory);
        let rename = |from: &str, to: &str| {
            let (from, to) = (path(below_anna(from)), path(below_anna(to)));
            site.able(Operation::Rename, site.store.rename(&from, &to))
        };
        let content = |name: &str| site.content(below_anna(name));
        able!(rename("a", "b")).unwrap();
        assert_eq!(
            (content("b"), site.names(ANNA)),
            (b"a".to_vec(), vec!["b".into(), "empty".into(), "full".into()])
        );
        rename("b", "c").unwrap().unwrap();
        rename("c", "c").unwrap().unwrap();
        rename("c", "full/c").unwrap().unwrap();
        assert_eq!(content("full/c"), b"a");
        rename("full/c", "c").unwrap().unwrap();
        refused!(rename("c", "empty").unwrap(), IsADirectory);
        refused!(rename("c", "full").unwrap(), IsADirectory);
        refused!(rename("full", "c").unwrap(), AlreadyExists);
        refused!(rename("full", "empty").unwrap(), AlreadyExists);
        refused!(rename("full", "full/sub").unwrap(), BadName);
        refused!(rename("missing", "d").unwrap(), NotFound);
        refused!(rename("c", "missing/c").unwrap(), NotFound);
        refused!(rename("c", "full/x/c").unwrap(), NotADirectory);
        refused!(rename("full/x/c", "d").unwrap(), NotADirectory);
        rename("full", "moved").unwrap().unwrap();
        assert_eq!(content("moved/x"), b"full/x");
        let to_root = |from: &str, to: &str| site.store.rename(&path(from), &path(to));
        refused!(to_root("", "domains/x"), PermissionDenied);
        refused!(to_root(&below_anna("c"), ""), PermissionDenied);
        // The levels that it needs are made, and taken back.
        let elsewhere = "domains/two.example/users/c";
        site.store.rename(&path(below_anna("c")), &path(elsewhere)).unwrap();
        assert_eq!(site.content(elsewhere), b"a");
        site.store.rename(&path(elsewhere), &path(below_anna("c"))).unwrap();
        refused!(to_root(&below_anna("missing"), "domains/three.example/users/c"), NotFound);
        refused!(site.store.stat(&path("domains/three.example")), NotFound);
        if site.try_put(below_anna("second"), Item::SecondName(below_anna("c").as_bytes())) {
            rename("c", "second").unwrap().unwrap();
            refused!(site.store.stat(&path(below_anna("c"))), NotFound);
            assert_eq!(content("second"), b"a", "one name is left");
            rename("second", "c").unwrap().unwrap();
        }
        if site.try_put(below_anna("link"), Item::Link(b"c")) {
            refused!(rename("c", "link").unwrap(), NotAFile);
            refused!(rename("link", "c").unwrap(), AlreadyExists);
            rename("link", "other").unwrap().unwrap();
            assert_eq!(site.store.stat(&path(below_anna("other"))).unwrap().kind, Kind::Symlink);
        }
        assert_eq!(content("c"), b"a");
    });
}

#[test]
fn a_time_is_kept_or_refused_and_then_the_old_one_stays() {
    each(|site| {
        site.put(MAIL, Item::File(b"abc"));
        let set = |at: &str, ns| site.able(Operation::SetTimes, site.store.set_times(&path(at), ns));
        let time = |at: &str| site.store.stat(&path(at)).unwrap().modified_ns;
        for at in [MAIL, ANNA] {
            for wanted in
                [0, PUT_NS + 123_456_789, 4_102_444_800_000_000_000, -86_400_000_000_000, i64::MAX, i64::MIN]
            {
                let before = time(at);
                match able!(set(at, wanted)) {
                    Ok(kept) => {
                        assert_eq!(time(at), kept);
                        assert!(kept.abs_diff(wanted) < 2_000_000_000, "{wanted} {kept}");
                    }
                    Err(Error::TimeNotKept { .. }) => assert_eq!(time(at), before),
                    Err(other) => panic!("{at} {wanted}: {other:?}"),
                }
            }
            let kept = set(at, PUT_NS).unwrap().unwrap();
            assert!(kept.abs_diff(PUT_NS) < 2_000_000_000, "every store holds a time of these years");
        }
        refused!(set(&below_anna("missing"), PUT_NS).unwrap(), NotFound);
        refused!(set(&format!("{MAIL}/x"), PUT_NS).unwrap(), NotADirectory);
        refused!(set("", PUT_NS).unwrap(), PermissionDenied);
        if site.try_put(below_anna("pipe"), Item::Pipe) {
            refused!(set(&below_anna("pipe"), PUT_NS).unwrap(), NotAFile);
        }
        if site.try_put(below_anna("link"), Item::Link(b"mail.eml")) {
            refused!(set(&below_anna("link"), PUT_NS).unwrap(), NotAFile);
        }
    });
}

#[test]
fn permissions_are_set_on_files_and_directories_alone() {
    each(|site| {
        site.put(MAIL, Item::File(b"abc"));
        let set = |at: &str, bits| {
            let permissions = Permissions::new(bits).unwrap();
            site.able(Operation::SetMode, site.store.set_mode(&path(at), permissions))
        };
        for at in [MAIL, ANNA] {
            for bits in [0o750, 0o704, 0o777] {
                able!(set(at, bits)).unwrap();
                assert_eq!(site.store.stat(&path(at)).unwrap().unix_mode & 0o777, bits);
            }
        }
        refused!(set(&below_anna("missing"), 0o600).unwrap(), NotFound);
        refused!(set("", 0o700).unwrap(), PermissionDenied);
        for (name, item) in [("link", Item::Link(b"mail.eml")), ("pipe", Item::Pipe)] {
            if site.try_put(below_anna(name), item) {
                refused!(set(&below_anna(name), 0o600).unwrap(), NotAFile);
            }
        }
        assert_eq!(site.content(MAIL), b"abc");
    });
}

#[test]
fn names_are_any_bytes() {
    each(|site| {
        let single = (1..=255_u8).filter(|byte| !matches!(byte, b'/' | b'.')).map(|byte| vec![byte]);
        let others = [&b"\xff\xfe"[..], b"a\nb", b" a", b"a ", b"...", b".a", b"-rf", b"a\\b", &[b'n'; 255]];
        let mut names: Vec<Vec<u8>> = single.chain(others.map(<[u8]>::to_vec)).collect();
        names.sort();
        let at = |name: &[u8]| [ANNA.as_bytes(), b"/", name].concat();
        for name in &names {
            site.put(at(name), Item::File(name));
        }
        let found: Vec<Vec<u8>> =
            site.entries(ANNA, SORTED).unwrap().into_iter().map(|entry| entry.name).collect();
        assert_eq!(found, names);
        for name in &names {
            let entry = site.store.stat(&path(at(name))).unwrap();
            assert_eq!((&entry.name, entry.size), (name, name.len() as u64));
            assert_eq!(site.content(at(name)), *name);
        }
        let sub = at(b"sub");
        able!(site.able(Operation::MakeDirectory, site.store.make_directory(&path(&sub)))).unwrap();
        for name in &names {
            let to = path([&sub[..], b"/", name].concat());
            able!(site.able(Operation::Rename, site.store.rename(&path(at(name)), &to))).unwrap();
            able!(site.able(Operation::Remove, site.store.remove(&to))).unwrap();
        }
        assert_eq!(site.names(ANNA), ["sub"]);
    });
}

#[test]
fn a_tree_of_70_levels_is_no_limit() {
    each(|site| {
        site.put(ANNA, Item::Directory);
        let deep = (1..=66).fold(ANNA.to_owned(), |above, level| {
            let next = format!("{above}/level{level}");
            match site.able(Operation::MakeDirectory, site.store.make_directory(&path(&next))) {
                Some(made) => made.unwrap(),
                None => site.put(&next, Item::Directory),
            }
            next
        });
        assert_eq!(path(&deep).depth(), 70);
        let mail = format!("{deep}/mail.eml");
        match site.upload(&mail, PLAIN, b"deep") {
            Some(done) => assert_eq!(done.unwrap().size, 4),
            None => site.put(&mail, Item::File(b"deep")),
        }
        assert_eq!((site.content(&mail), site.names(&deep)), (b"deep".to_vec(), vec!["mail.eml".into()]));
        assert_eq!(site.store.stat(&path(&mail)).unwrap().size, 4);
        let renamed = path(format!("{deep}/renamed.eml"));
        able!(site.able(Operation::Rename, site.store.rename(&path(&mail), &renamed))).unwrap();
        able!(site.able(Operation::Remove, site.store.remove(&renamed))).unwrap();
        able!(site.able(Operation::RemoveDirectory, site.store.remove_directory(&path(&deep)))).unwrap();
    });
}

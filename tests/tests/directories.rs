//! Admins of an organisation: OpenLDAP's slapd and Samba's Active Directory, as Debian has them.

#![allow(clippy::unwrap_used)] // helpers of tests, which clippy does not know as such

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use portolan_tests::client::{Control, Protection, curl_over, succeed, succeeded, text};
use portolan_tests::{Cluster, PASSWORD, admin_line, eventually, free_port, http, program, tree};

/// A process of a directory. Killed when dropped.
struct Directory {
    child: Child,
}

impl Drop for Directory {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

const PEOPLE: &str = "dn: dc=example,dc=org
objectClass: dcObject
objectClass: organization
dc: example
o: Example

dn: ou=people,dc=example,dc=org
objectClass: organizationalUnit
ou: people

dn: ou=groups,dc=example,dc=org
objectClass: organizationalUnit
ou: groups

dn: cn=portolan,dc=example,dc=org
objectClass: organizationalRole
objectClass: simpleSecurityObject
cn: portolan
userPassword: service-password
";

/// A person, with the domain that it looks after.
fn person(uid: &str, domain: &str) -> String {
    format!(
        "\ndn: uid={uid},ou=people,dc=example,dc=org\nobjectClass: inetOrgPerson\nuid: {uid}\ncn: {uid}\nsn: {uid}\n\
         userPassword: {uid}-password\nbusinessCategory: {domain}\n"
    )
}

/// slapd with this data, over LDAP and LDAPS.
struct Slapd {
    _process: Directory,
    plain: u16,
    tls: u16,
}

impl Slapd {
    fn start(cluster: &Cluster, name: &str) -> Self {
        Self::start_with(cluster, name, "")
    }

    /// With more entries.
    fn start_with(cluster: &Cluster, name: &str, more: &str) -> Self {
        let folder = cluster.path().join(name);
        fs::create_dir_all(folder.join("db")).unwrap();
        let pki = cluster.path().join("pki");
        let (folder_shown, pki) = (folder.display(), pki.display());
        let config = format!(
            "include /etc/ldap/schema/core.schema\ninclude /etc/ldap/schema/cosine.schema\n\
             include /etc/ldap/schema/nis.schema\ninclude /etc/ldap/schema/inetorgperson.schema\n\
             include /etc/ldap/schema/misc.schema\n\
             modulepath /usr/lib/ldap\nmoduleload back_mdb\npidfile {folder_shown}/slapd.pid\n\
             TLSCACertificateFile {pki}/ca.pem\nTLSCertificateFile {pki}/front-1.pem\n\
             TLSCertificateKeyFile {pki}/front-1-key.pem\n\
             database mdb\nsuffix \"dc=example,dc=org\"\nrootdn \"cn=root,dc=example,dc=org\"\nrootpw root-password\n\
             limits dn.exact=\"cn=portolan,dc=example,dc=org\" size.prtotal=unlimited\n\
             directory {folder_shown}/db\nindex uid,member,uniqueMember,memberUid eq\n\
             access to attrs=userPassword by anonymous auth by * none\n\
             access to * by dn.exact=\"cn=portolan,dc=example,dc=org\" read by users read by * none\n"
        );
        fs::write(folder.join("slapd.conf"), config).unwrap();
        let mut people = PEOPLE.to_owned();
        for (uid, domain) in
            [("anna", "one.example"), ("bob", "two.example"), ("carl", "-"), ("dora", "-"), ("nobody", "-")]
        {
            people += &person(uid, domain);
        }
        let group = |name: &str, class: &str, members: &str| {
            format!(
                "\ndn: cn={name},ou=groups,dc=example,dc=org\nobjectClass: {class}\ncn: {name}\n{members}\n"
            )
        };
        people += &group("all", "groupOfNames", "member: cn=inner,ou=groups,dc=example,dc=org");
        people += &group("inner", "groupOfUniqueNames", "uniqueMember: uid=anna,ou=people,dc=example,dc=org");
        // A loop, which must not be followed for ever.
        people += &group(
            "loop",
            "groupOfNames",
            "member: cn=all,ou=groups,dc=example,dc=org\nmember: cn=loop,ou=groups,dc=example,dc=org",
        );
        people += &group("posix", "posixGroup", "gidNumber: 5000\nmemberUid: carl");
        people += &group("own", "groupOfNames", "member: uid=bob,ou=people,dc=example,dc=org");
        people += more;
        fs::write(folder.join("people.ldif"), people).unwrap();
        let mut add = Command::new("/usr/sbin/slapadd");
        succeed(add.arg("-f").arg(folder.join("slapd.conf")).arg("-l").arg(folder.join("people.ldif")));
        let (plain, tls) = (free_port(), free_port());
        let child = Command::new("/usr/sbin/slapd")
            .args(["-h", &format!("ldap://127.0.0.1:{plain} ldaps://127.0.0.1:{tls}"), "-d", "0", "-f"])
            .arg(folder.join("slapd.conf"))
            .stderr(Stdio::null())
            .spawn()
            .expect("`tests/run` installs slapd");
        let process = Directory { child };
        eventually("slapd listens", || TcpStream::connect(("127.0.0.1", tls)).ok());
        Self { _process: process, plain, tls }
    }
}

const GRANTS: &str = r#"
[[grants]]
group = "all"
rights = ["backup", "restore"]
domains = ["*"]
[[grants]]
group = "cn=own, ou=groups, dc=example, dc=org"
rights = ["backup"]
domains_attribute = "businessCategory"
[[grants]]
group = "posix"
rights = ["backup"]
domains = ["*.example"]
[[grants]]
user = "dora"
rights = ["restore"]
domains = ["two.example"]
"#;

/// The configuration of a directory with these addresses.
fn directory(cluster: &Cluster, uris: &[String], keys: &str) -> String {
    let secret = cluster.path().join("service-password");
    fs::write(&secret, "service-password\n").unwrap();
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
    format!(
        "[[directories]]\nname = \"corp\"\nkind = \"openldap\"\nuris = {uris:?}\nca = \"pki/ca.pem\"\n\
         base = \"ou=people,dc=example,dc=org\"\ngroup_base = \"ou=groups,dc=example,dc=org\"\n{keys}\n"
    )
}

const SERVICE: &str =
    "bind_dn = \"cn=portolan,dc=example,dc=org\"\nbind_password_file = \"service-password\"\n";

fn cluster_with(uris: impl Fn(&Slapd) -> Vec<String>, keys: &str) -> (Cluster, Slapd) {
    let mut cluster = Cluster::start(tree::fill);
    let slapd = Slapd::start(&cluster, "slapd");
    let more = directory(&cluster, &uris(&slapd), keys) + GRANTS;
    cluster.restart_frontend(|config| config + &more);
    (cluster, slapd)
}

#[test]
fn a_directory_that_is_away_is_told_by_metrics_and_readiness_before_anybody_logs_in() {
    let mut cluster = Cluster::start(tree::fill);
    let slapd = Slapd::start(&cluster, "slapd");
    let (good, nobody) =
        (format!("ldap://127.0.0.1:{}", slapd.plain), format!("ldap://127.0.0.1:{}", free_port()));
    let uris = [nobody.clone(), good.clone()];
    let more = directory(&cluster, &uris, SERVICE) + GRANTS + http::TABLE;
    cluster.restart_frontend(|config| config + &more);
    let up = |address, uri: &str| {
        http::metric(address, &format!("portolan_directory_server_up{{directory=\"corp\",server=\"{uri}\"}}"))
    };
    let address = http::address(&cluster.frontend);
    eventually("the probe has found out", || (up(address, &nobody) == Some(0.0)).then_some(()));
    assert_eq!(up(address, &good), Some(1.0));
    let (status, told) = http::get(address, "/readyz");
    assert_eq!(status, 200);
    assert!(told.contains(&format!("warning: directory corp: {nobody} does not answer")), "{told}");
    assert!(http::metric(address, "portolan_directory_failures_total{directory=\"corp\"}") >= Some(1.0));
    // With the other one gone too, the admins file still serves; without that nobody can log in.
    drop(slapd);
    assert_eq!(login(cluster.frontend.address, "anna", "anna-password").0, 431);
    assert_eq!(up(address, &good), Some(0.0));
    assert_eq!(http::get(address, "/readyz").0, 200);
    cluster.restart_frontend(|config| config.replace("[admins]\nfile = \"admins\"\n", ""));
    let address = http::address(&cluster.frontend);
    eventually("the front end is not ready", || {
        let (status, told) = http::get(address, "/readyz");
        let reason = "not ready: no directory of admins answers, so nobody can log in";
        (status == 503 && told.contains(reason)).then_some(())
    });
    assert_eq!(http::metric(address, "portolan_ready"), Some(0.0));
}

/// The code of a login.
fn login(address: SocketAddr, name: &str, password: &str) -> (u16, Control) {
    let mut control = Control::connect(address);
    control.send(format!("USER {name}\r\n").as_bytes()).unwrap();
    control.reply();
    let (code, _) = control.ask(&format!("PASS {password}"));
    if code == 230 {
        assert_eq!(control.ask("TYPE I").0, 200);
    }
    (code, control)
}

#[test]
fn admins_of_openldap_log_in_over_each_kind_of_connection_and_see_what_their_groups_grant() {
    for (keys, tls) in [
        (SERVICE.to_owned(), false),
        (format!("{SERVICE}start_tls = true\n"), false),
        (SERVICE.to_owned(), true),
        ("bind_as = \"uid={local},ou=people,dc=example,dc=org\"\n".to_owned(), true),
    ] {
        let uris = |slapd: &Slapd| match tls {
            false => vec![format!("ldap://127.0.0.1:{}", slapd.plain)],
            true => vec![format!("ldaps://127.0.0.1:{}", slapd.tls)],
        };
        let (cluster, _slapd) = cluster_with(uris, &keys);
        let address = cluster.frontend.address;
        let domains = |name: &str| {
            let (code, mut control) = login(address, name, &format!("{name}-password"));
            assert_eq!(code, 230, "{keys} {name}");
            let (_, listing) = control.fetch("NLST /domains");
            String::from_utf8(listing).unwrap().replace("\r\n", " ").replace("/domains/", "")
        };
        // By a group of a group; by a group and an attribute; by memberUid; by name.
        assert_eq!(domains("anna"), "one.example spread.example two.example ");
        assert_eq!(domains("bob"), "two.example ");
        assert_eq!(domains("carl"), "one.example spread.example two.example ");
        assert_eq!(domains("dora"), "two.example ");
        let (_, mut bob) = login(address, "bob", "bob-password");
        assert_eq!(bob.ask("MKD /domains/two.example/users/new").0, 550, "backup does not write");
        let (_, mut dora) = login(address, "dora", "dora-password");
        assert_eq!(dora.ask("MKD /domains/two.example/users/new").0, 257);
        // Who has proved who it is may know why it is not let in.
        let mut control = Control::connect(address);
        control.ask("USER nobody");
        let (code, said) = control.ask("PASS nobody-password");
        assert_eq!((code, &*said), (530, "530 Not logged in: no right to any domain is granted to you."));
        for (name, password) in
            [("anna", "wrong"), ("nobody", "wrong"), ("missing", "x"), ("anna", "anna-password ")]
        {
            assert_eq!(login(address, name, password).0, 530, "{keys} {name}");
        }
        // The admins file is asked too, and first.
        Control::login(address, "admin");
    }
}

#[test]
fn a_delegated_admin_neither_sees_nor_reaches_another_domain() {
    let (cluster, _slapd) = cluster_with(|slapd| vec![format!("ldaps://127.0.0.1:{}", slapd.tls)], SERVICE);
    let (_, mut bob) = login(cluster.frontend.address, "bob", "bob-password");
    for listing in ["MLSD /domains", "LIST /domains", "NLST /domains/*", "LIST -R /", "NLST /domains/one*"] {
        let (_, shown) = bob.fetch(listing);
        let shown = String::from_utf8_lossy(&shown).into_owned();
        assert!(!shown.contains("one.example") && !shown.contains("spread.example"), "{listing}: {shown}");
    }
    let file = "one.example/domainRegistry.bin";
    let as_missing = |bob: &mut Control, command: &str| {
        let (code, said) = bob.ask(&format!("{command} /domains/{file}"));
        let (missing_code, missing) = bob.ask(&format!("{command} /domains/none.example/domainRegistry.bin"));
        // Word for word what is said of a domain that does not exist.
        let missing = missing.replace("none.example", "one.example");
        assert_eq!((code, said), (missing_code, missing), "{command}");
        assert!(code >= 500, "{command}: {code}");
    };
    for command in
        ["CWD", "SIZE", "MDTM", "MLST", "STAT", "HASH", "XCRC", "AVBL", "DELE", "RMD", "MKD", "RNFR"]
    {
        as_missing(&mut bob, command);
    }
    for command in ["RETR", "LIST", "NLST", "MLSD"] {
        assert_eq!(bob.fetch(&format!("{command} /domains/{file}")).0, 550, "{command}");
        assert_eq!(
            bob.fetch(&format!("{command} ../../domains/./two.example/../{file}")).0,
            550,
            "{command}"
        );
    }
    assert_eq!(bob.store(&format!("/domains/{file}"), b"x"), 550);
    assert_eq!(bob.ask("CWD /domains/two.example").0, 250);
    assert_eq!(bob.fetch("RETR ../one.example/domainRegistry.bin").0, 550);
    assert_eq!(bob.ask("MFMT 20200101000000 ../one.example/domainRegistry.bin").0, 550);
    assert_eq!(bob.fetch("RETR domainRegistry.bin"), (226, b"two.example".to_vec()));
}

/// Over a cluster and the same with the other engine: nothing above its own root is there for an admin.
#[test]
fn the_tree_of_an_admin_with_its_own_root_begins_there() {
    let mut cluster = Cluster::start(tree::fill);
    let slapd = Slapd::start(&cluster, "slapd");
    let line = admin_line(&["rooted", "--rights=backup,restore", "--root=/domains/two.example"]);
    let admins = cluster.path().join("admins");
    fs::write(&admins, fs::read_to_string(&admins).unwrap() + &line).unwrap();
    let more = directory(&cluster, &[format!("ldaps://127.0.0.1:{}", slapd.tls)], SERVICE)
        + &GRANTS.replace(
            "rights = [\"restore\"]",
            "rights = [\"backup\", \"restore\"]\nroot = \"/domains/two.example\"",
        );
    for engine in ["native", "libunftp"] {
        cluster.restart_frontend(|config| {
            let config = config.replace("engine = \"native\"\n", "").replace(&more, "");
            config.replacen("[[listeners]]\n", &format!("[[listeners]]\nengine = \"{engine}\"\n"), 1) + &more
        });
        let address = cluster.frontend.address;
        for (name, password) in [("dora", "dora-password"), ("rooted", PASSWORD)] {
            let (code, mut dora) = login(address, name, password);
            assert_eq!(code, 230, "{engine} {name}");
            dora.ask("TYPE I");
            let (_, shown) = dora.fetch("LIST");
            let shown = String::from_utf8(shown).unwrap();
            assert!(shown.contains("domainRegistry.bin") && shown.contains("users"), "{shown}");
            for said in ["..", "/..", "../../..", "/", "users", ".."] {
                assert_eq!(dora.ask(&format!("CWD {said}")).0, 250, "{said}");
            }
            // The library does not shorten what it was told.
            let (_, shown) = dora.ask("PWD");
            assert!(engine == "libunftp" || shown.contains("\"/\""), "{shown}");
            assert_eq!(dora.ask("CWD /").0, 250);
            for same in ["domainRegistry.bin", "/domainRegistry.bin", "/../../domainRegistry.bin"] {
                assert_eq!(dora.fetch(&format!("RETR {same}")), (226, b"two.example".to_vec()), "{same}");
            }
            for other in [
                "/domains/one.example/domainRegistry.bin",
                "../one.example/domainRegistry.bin",
                "/domains/two.example/domainRegistry.bin",
            ] {
                for command in ["SIZE", "MDTM", "DELE", "RNFR", "CWD"] {
                    let (code, said) = dora.ask(&format!("{command} {other}"));
                    assert!(code >= 500 && !said.contains("/domains/domains"), "{command} {other}: {said}");
                }
                assert_ne!(dora.fetch(&format!("RETR {other}")).0, 226);
            }
            assert_eq!(dora.store("/users/new.txt", b"new"), 226, "{engine}");
            assert_eq!(dora.fetch("RETR users/new.txt").1, b"new");
            assert_eq!(dora.ask("RNFR users/new.txt").0, 350);
            assert_eq!(dora.ask("RNTO /../users/newer.txt").0, 250);
            // What an agent says is told by the admin's own names.
            let (code, said) = dora.ask("RMD users/newer.txt");
            assert!(code == 550 && !said.contains("two.example"), "{said}");
            assert_eq!(dora.ask("DELE users/newer.txt").0, 250);
            for command in ["RMD /", "DELE /", "RNFR ."] {
                let (code, said) = dora.ask(command);
                let code = if code == 350 { dora.ask("RNTO x").0 } else { code };
                assert!((550..554).contains(&code), "{command}: {said}");
            }
            assert_eq!(dora.store("/", b"x"), 550);
            if engine == "native" {
                let (code, said) = dora.ask("MLST /");
                assert!(code == 250 && said.ends_with("; /\n250 End."), "{said}");
                assert_eq!(dora.ask("MLST users").1.matches("/users").count(), 2);
            }
            cluster.frontend.wait_for_log("/domains/two.example/users/new");
        }
        // The same file as everybody else's.
        let mut admin = Control::login(address, "admin");
        assert_eq!(admin.fetch("RETR /domains/two.example/domainRegistry.bin").1, b"two.example");
    }
}

/// What was typed is not taken for a name that the directory does not give: grants and certificates go by it.
#[test]
fn an_entry_without_the_attribute_that_names_admins_is_nobodys() {
    let keys = format!("{SERVICE}filter = \"(uid={{local}})\"\nname_attribute = \"mail\"\n");
    let (cluster, _slapd) = cluster_with(|slapd| vec![format!("ldaps://127.0.0.1:{}", slapd.tls)], &keys);
    assert_eq!(login(cluster.frontend.address, "anna@elsewhere.example", "anna-password").0, 530);
    cluster.frontend.wait_for_log("the entry has no mail");
}

#[test]
fn servers_that_are_referred_to_are_asked_only_where_that_is_configured() {
    let mut cluster = Cluster::start(tree::fill);
    let (first, second) = (Slapd::start(&cluster, "first"), Slapd::start(&cluster, "second"));
    // Among the people of the first there is a reference to those of the second, which alone has eve.
    let add = |slapd: &Slapd, entry: &str| {
        let file = cluster.path().join("entry.ldif");
        fs::write(&file, entry).unwrap();
        let uri = format!("ldap://127.0.0.1:{}", slapd.plain);
        let root = "cn=root,dc=example,dc=org";
        succeed(
            Command::new("ldapadd")
                .args(["-x", "-M", "-H", &uri, "-D", root, "-w", "root-password", "-f"])
                .arg(file),
        );
    };
    add(
        &first,
        &format!(
            "dn: ou=elsewhere,ou=people,dc=example,dc=org\nobjectClass: referral\nobjectClass: extensibleObject\n\
             ou: elsewhere\nref: ldap://127.0.0.1:{}/ou=people,dc=example,dc=org\n",
            second.plain
        ),
    );
    add(&second, person("eve", "one.example").trim_start());
    add(
        &second,
        "dn: cn=eves,ou=groups,dc=example,dc=org\nobjectClass: groupOfNames\ncn: eves\nmember: uid=eve,ou=people,dc=example,dc=org\n",
    );
    let eves = "[[grants]]\ngroup = \"eves\"\nrights = [\"backup\"]\ndomains = [\"one.example\"]\n";
    let uris = [format!("ldap://127.0.0.1:{}", first.plain)];
    for (referrals, code) in [("ignore", 530), ("follow", 230)] {
        let keys = format!("{SERVICE}referrals = \"{referrals}\"\n");
        let more = directory(&cluster, &uris, &keys) + GRANTS + eves;
        cluster.restart_frontend(|config| config + &more);
        assert_eq!(login(cluster.frontend.address, "eve", "eve-password").0, code, "{referrals}");
        assert_eq!(login(cluster.frontend.address, "eve", "wrong").0, 530);
        assert_eq!(login(cluster.frontend.address, "missing", "x").0, 530);
        assert_eq!(login(cluster.frontend.address, "anna", "anna-password").0, 230);
        if referrals == "follow" {
            drop(second);
            assert_eq!(login(cluster.frontend.address, "eve", "eve-password").0, 431);
            return;
        }
        cluster.edit_config(|config| config.replace(&more, ""));
    }
}

#[test]
fn no_name_is_a_filter_and_no_empty_password_binds() {
    let (cluster, _slapd) = cluster_with(|slapd| vec![format!("ldap://127.0.0.1:{}", slapd.plain)], SERVICE);
    cluster.edit_config(|config| config + "[ftp.bans]\naddress_failures = 0\ndelay_max = \"0s\"\n");
    cluster.reload();
    let address = cluster.frontend.address;
    for name in [
        "*",
        "*)(uid=*",
        "anna)(|(uid=*",
        "a*",
        "anna)",
        "(",
        "uid=anna,ou=people,dc=example,dc=org",
        "anna,ou=people",
        "\\61nna",
        "anna\\",
        "{user}",
    ] {
        assert_eq!(login(address, name, "anna-password").0, 530, "{name}");
    }
    let (code, _) = login(address, "anna", "");
    assert!(code == 530 || code == 501, "{code}");
    let mut control = Control::connect(address);
    control.send(b"USER an\xffna\r\nPASS anna-password\r\n").unwrap();
    assert_eq!((control.reply().0, control.reply().0), (331, 530));
    assert_eq!(login(address, "anna", "anna-password").0, 230);
}

#[test]
fn a_replica_that_is_away_is_passed_over_and_without_any_nobody_is_refused_for_it() {
    let mut cluster = Cluster::start(tree::fill);
    let (first, second) = (Slapd::start(&cluster, "first"), Slapd::start(&cluster, "second"));
    let uris = [&first, &second].map(|slapd| format!("ldaps://127.0.0.1:{}", slapd.tls));
    let more = directory(&cluster, &uris, SERVICE) + GRANTS;
    cluster.restart_frontend(|config| config + &more);
    let address = cluster.frontend.address;
    // 200 logins by 8 clients, and a replica that is killed meanwhile.
    let started = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..25 {
                    assert_eq!(login(address, "anna", "anna-password").0, 230);
                }
            });
        }
        std::thread::sleep(Duration::from_millis(100));
        drop(first);
    });
    println!("200 logins by 8 clients in {:?}", started.elapsed());
    cluster.frontend.wait_for_log("directory server does not answer");
    let mut inside = login(address, "bob", "bob-password").1;
    drop(second);
    // More often than failed logins are allowed: these are none.
    let mut control = Control::connect(address);
    for _ in 0..12 {
        assert_eq!(control.ask("USER anna").0, 331);
        let (code, said) = control.ask("PASS anna-password");
        assert_eq!((code, &*said), (431, "431 The directory of admins does not answer; try again later."));
    }
    let shown = succeeded(&cluster.operate(&["status"]));
    assert_eq!(shown.matches("did not answer").count(), 2, "{shown}");
    // Who is in stays in, and the admins file is there for emergencies.
    assert_eq!(inside.fetch("RETR /domains/two.example/domainRegistry.bin").0, 226);
    Control::login(address, "admin");
    assert!(succeeded(&cluster.operate(&["bans"])).contains("nobody is banned"));
}

#[test]
fn a_good_password_is_remembered_for_a_moment_where_that_is_configured_and_dropped_at_a_wrong_one() {
    let keys = format!("{SERVICE}cache = \"60s\"\n");
    let (cluster, slapd) = cluster_with(|slapd| vec![format!("ldaps://127.0.0.1:{}", slapd.tls)], &keys);
    let address = cluster.frontend.address;
    assert_eq!(login(address, "anna", "anna-password").0, 230);
    assert_eq!(login(address, "bob", "bob-password").0, 230);
    drop(slapd);
    for _ in 0..5 {
        let (code, mut control) = login(address, "anna", "anna-password");
        assert_eq!(code, 230);
        assert_eq!(control.fetch("RETR /domains/one.example/domainRegistry.bin").0, 226);
    }
    // Another password than the good one: now nobody knows, and the good one is forgotten too.
    assert_eq!(login(address, "anna", "wrong").0, 431);
    assert_eq!(login(address, "anna", "anna-password").0, 431);
    assert_eq!(login(address, "carl", "carl-password").0, 431, "who was not there before is not remembered");
    let (_, mut bob) = login(address, "bob", "bob-password");
    assert_eq!(bob.fetch("RETR /domains/one.example/domainRegistry.bin").0, 550);
    assert!(!cluster.frontend.log().contains("anna-password"));
}

/// Logins with and without the cache, for docs/configuration.md: `--nocapture` prints them.
#[test]
fn twenty_sessions_at_once_log_in_with_and_without_the_cache() {
    for cache in ["0s", "60s"] {
        let keys = format!("{SERVICE}cache = \"{cache}\"\n");
        let (cluster, _slapd) = cluster_with(|slapd| vec![format!("ldaps://127.0.0.1:{}", slapd.tls)], &keys);
        let address = cluster.frontend.address;
        assert_eq!(login(address, "anna", "anna-password").0, 230);
        let started = Instant::now();
        std::thread::scope(|scope| {
            for _ in 0..19 {
                scope.spawn(|| assert_eq!(login(address, "anna", "anna-password").0, 230));
            }
        });
        println!("cache {cache}: 19 sessions at once in {:?}", started.elapsed());
    }
}

/// A directory that does as `with` says with each connection.
fn false_directory(with: impl Fn(TcpStream) + Send + Sync + 'static) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let with = std::sync::Arc::new(with);
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let with = std::sync::Arc::clone(&with);
            std::thread::spawn(move || with(stream));
        }
    });
    port
}

#[test]
fn a_directory_that_is_slow_breaks_off_or_has_a_wrong_certificate_is_away() {
    let silent = false_directory(|mut stream| {
        let mut buffer = [0; 4_096];
        while let Ok(1..) = stream.read(&mut buffer) {}
    });
    let cutting = false_directory(|mut stream| {
        let mut buffer = [0; 4_096];
        let asked = stream.read(&mut buffer);
        assert!(asked.is_ok());
        // The beginning of a bind response.
        stream.write_all(&[0x30, 0x0c, 0x02, 0x01]).ok();
    });
    let garbage = false_directory(|mut stream| {
        stream.write_all(&[0xff; 65_536]).ok();
        let mut buffer = [0; 4_096];
        while let Ok(1..) = stream.read(&mut buffer) {}
    });
    let mut cluster = Cluster::start(tree::fill);
    let slapd = Slapd::start(&cluster, "slapd");
    let made = Command::new(program("portolan"))
        .args(["pki", "init"])
        .arg(cluster.path().join("foreign"))
        .arg("--frontend=x")
        .output()
        .unwrap();
    succeeded(&made);
    for (uri, keys) in [
        (format!("ldap://127.0.0.1:{silent}"), "query_timeout = \"1s\"\nconnect_timeout = \"1s\"\n"),
        (format!("ldaps://127.0.0.1:{silent}"), "query_timeout = \"1s\"\nconnect_timeout = \"1s\"\n"),
        (format!("ldap://127.0.0.1:{cutting}"), "query_timeout = \"2s\"\n"),
        (format!("ldap://127.0.0.1:{garbage}"), "query_timeout = \"2s\"\n"),
        (format!("ldaps://127.0.0.1:{}", slapd.tls), "@foreign"),
    ] {
        let keys = keys.to_owned() + SERVICE;
        let more = directory(&cluster, std::slice::from_ref(&uri), &keys.replace("@foreign", ""));
        let more =
            if keys.starts_with("@foreign") { more.replace("pki/ca.pem", "foreign/ca.pem") } else { more };
        let more = more + GRANTS;
        cluster.restart_frontend(|config| config + &more);
        let address = cluster.frontend.address;
        let started = Instant::now();
        assert_eq!(login(address, "anna", "anna-password").0, 431, "{uri}");
        assert!(started.elapsed() < Duration::from_secs(5), "{uri}: {:?}", started.elapsed());
        Control::login(address, "admin");
        assert!(!cluster.frontend.log().contains("panicked"));
        cluster.edit_config(|config| config.replace(&more, ""));
    }
}

#[test]
fn the_operator_is_told_step_by_step_why() {
    let (cluster, _slapd) = cluster_with(|slapd| vec![format!("ldaps://127.0.0.1:{}", slapd.tls)], SERVICE);
    let test = |user: &str, password: Option<&str>| {
        let mut command = Command::new(program("portolan"));
        command.args(["auth", "test", user, "--config"]).arg(cluster.path().join("frontend.toml"));
        let Some(password) = password else { return command.output().unwrap() };
        let mut child = command
            .arg("--password")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(password.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    };
    let right = test("anna", Some("anna-password\n"));
    let shown = succeeded(&right);
    for step in [
        "the admins file:",
        "directory corp:",
        "uid=anna,ou=people,dc=example,dc=org",
        "accepted",
        "member of cn=inner,ou=groups,dc=example,dc=org",
        "member of cn=all,ou=groups,dc=example,dc=org",
        "granted to group \"all\": backup, restore of all domains",
        "accepted as anna: backup, restore of all domains",
    ] {
        assert!(shown.contains(step), "{step}: {shown}");
    }
    assert!(!shown.contains("Rule") && !shown.contains('{'), "{shown}");
    assert!(!shown.contains("anna-password") && !shown.contains("service-password"), "{shown}");
    let wrong = test("anna", Some("wrong\n"));
    assert!(wrong.status.code() == Some(1) && text(&wrong).contains("refused"), "{}", text(&wrong));
    assert!(text(&test("missing", None)).contains("no entry"));
    assert!(text(&test("nobody", None)).contains("no grant is for nobody"));
    // Names of domains are text, and what was not tried is not said to be accepted.
    let dora = succeeded(&test("dora", None));
    assert!(dora.contains("granted to user \"dora\": restore of two.example\n"), "{dora}");
    assert!(dora.contains("with the right password accepted as dora: restore of two.example\n"), "{dora}");
    let bob = succeeded(&test("bob", None));
    assert!(bob.contains("backup of the domains that attribute businessCategory names\n"), "{bob}");
    let admin = succeeded(&test("admin", None));
    assert!(admin.contains("accepted as admin: backup, restore of all domains\n"), "{admin}");
}

/// A domain or a user with its host.
fn mapped(dn: &str, class: &str, name: &str, host: &str) -> String {
    format!(
        "\ndn: {dn},ou=people,dc=example,dc=org\n{class}\nobjectClass: inetLocalMailRecipient\n{name}\nmailHost: {host}\n"
    )
}

fn mapped_domain(name: &str, host: &str) -> String {
    let class = "objectClass: organizationalUnit\nobjectClass: domainRelatedObject";
    mapped(&format!("ou={name}"), class, &format!("associatedDomain: {name}"), host)
}

fn mapped_user(number: u32) -> String {
    let host = if number.is_multiple_of(2) { "imap1.example.net" } else { "IMAP3.example.net" };
    let class = format!("objectClass: inetOrgPerson\ncn: {number}\nsn: {number}");
    let name = format!("mail: User-{number:04}@Spread.example");
    mapped(&format!("uid=user-{number:04}"), &class, &name, host)
}

#[test]
fn a_directory_says_which_node_holds_what_page_by_page() {
    let mut cluster = Cluster::start(tree::fill);
    let mut entries =
        mapped_domain("one.example", "mail-1") + &mapped_domain("gone.example", "nobody.example.net");
    // More than one page, and more than slapd tells at once.
    entries.extend((0..1_200).map(mapped_user));
    let slapd = Slapd::start_with(&cluster, "slapd", &entries);
    let map = "\n[map.ldap]\ndirectory = \"corp\"\ntimeout = \"20s\"\n";
    let more = directory(&cluster, &[format!("ldaps://127.0.0.1:{}", slapd.tls)], SERVICE) + GRANTS + map;
    cluster.restart_frontend(|config| {
        config
            .replace("placement =", "sources = [\"ldap\", \"announced\"]\nplacement =")
            .replace("name = \"mail-1\"", "name = \"mail-1\"\nmail_hosts = [\"imap1.example.net\"]")
            .replace("name = \"mail-3\"", "name = \"mail-3\"\nmail_hosts = [\"imap3.example.net\"]")
            + &more
    });
    let shown = |cluster: &Cluster, arguments: &[&str]| {
        let text = succeeded(&cluster.operate(arguments));
        text.lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ") + "\n")
            .collect::<String>()
    };
    let map = shown(&cluster, &["map"]);
    for line in
        ["one.example mail-1 ldap\n", "spread.example mail-1,mail-3 ldap\n", "two.example mail-2 announced\n"]
    {
        assert!(map.contains(line), "{line}: {map}");
    }
    // A node that nobody knows is no absence.
    assert!(map.contains("gone.example ?nobody.example.net ldap\n"), "{map}");
    cluster.frontend.wait_for_log("nobody.example.net");
    for (user, node) in [("user-0000", "mail-1"), ("user-1199", "mail-3")] {
        let path = format!("/domains/spread.example/users/{user}/Registry.bin");
        assert!(shown(&cluster, &["map", "explain", &path]).contains(&format!("asked: {node}\n")), "{user}");
    }
    let mut session = Control::login(cluster.frontend.address, "admin");
    let (code, said) = session.ask("CWD /domains/gone.example");
    assert!(code == 450 && said.contains("nobody.example.net"), "{code} {said}");
    assert!(String::from_utf8(session.fetch("NLST /domains").1).unwrap().contains("gone.example"));
    // What is new goes where the directory says.
    assert_eq!(session.ask("MKD /domains/spread.example/users/user-0001").0, 257);
    assert!(cluster.domains(3).join("spread.example/users/user-0001").is_dir());

    // Read again when asked, and by a reload.
    let change = "dn: ou=one.example,ou=people,dc=example,dc=org\nchangetype: modify\nreplace: mailHost\nmailHost: mail-2\n";
    let file = cluster.path().join("change.ldif");
    fs::write(&file, change).unwrap();
    let uri = format!("ldap://127.0.0.1:{}", slapd.plain);
    let modify = ["-x", "-H", &uri, "-D", "cn=root,dc=example,dc=org", "-w", "root-password", "-f"];
    succeed(Command::new("ldapmodify").args(modify).arg(&file));
    assert_eq!(shown(&cluster, &["map", "refresh"]), "the directory names 3 domains\n");
    let conflicts = shown(&cluster, &["map", "--conflicts"]);
    assert!(
        conflicts.contains("one.example mail-2 ldap announced: mail-1; not shown: its part on mail-1\n"),
        "{conflicts}"
    );
    assert!(shown(&cluster, &["status"]).contains("map of directory corp: 3 domains, read "));

    // Without the directory the last map stays; a front end that never read it knows nothing.
    drop(slapd);
    let refused = cluster.operate(&["map", "refresh"]);
    assert!(!refused.status.success() && text(&refused).contains("does not answer"), "{}", text(&refused));
    assert!(shown(&cluster, &["map"]).contains("spread.example mail-1,mail-3 ldap\n"));
    assert!(shown(&cluster, &["status"]).contains("the last reading of the map failed"));
    cluster.restart_frontend(|config| config);
    let mut session = Control::login(cluster.frontend.address, "admin");
    let (code, said) = session.ask("CWD /domains/two.example");
    assert!(code == 450 && said.contains("has not been read yet"), "{code} {said}");
    assert_eq!(session.fetch("NLST /domains"), (450, Vec::new()));
}

/// Samba as a domain controller of Active Directory, on the ports of LDAP.
struct SambaAd {
    _process: Directory,
    config: PathBuf,
}

impl SambaAd {
    fn start(cluster: &Cluster) -> Self {
        let folder = cluster.path().join("samba");
        let lo = ["--option=interfaces=lo", "--option=bind interfaces only=yes"];
        succeed(
            Command::new("samba-tool")
                .args(["domain", "provision", "--realm=AD.EXAMPLE.ORG", "--domain=ADEX", "--server-role=dc"])
                .args(["--adminpass=Admin-Passw0rd", "--use-rfc2307", "--dns-backend=NONE"])
                .arg(format!("--targetdir={}", folder.display()))
                .args(lo),
        );
        let config = folder.join("etc/smb.conf");
        let pki = cluster.path().join("pki");
        let certificates = format!(
            "[global]\n\ttls keyfile = {0}/front-1-key.pem\n\ttls certfile = {0}/front-1.pem\n\ttls cafile = {0}/ca.pem\n",
            pki.display()
        );
        let text = fs::read_to_string(&config).unwrap().replacen("[global]\n", &certificates, 1);
        fs::write(&config, text).unwrap();
        let child = Command::new("samba")
            .args(["-i", "-s"])
            .arg(&config)
            .args(lo)
            .arg("--option=server services=ldap")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("`tests/run` installs samba");
        let samba = Self { _process: Directory { child }, config };
        eventually("samba listens", || TcpStream::connect(("127.0.0.1", 636)).ok());
        samba
    }

    fn tool(&self, arguments: &[&str]) {
        succeed(Command::new("samba-tool").args(arguments).arg("-s").arg(&self.config));
    }
}

#[test]
fn admins_of_active_directory_log_in_by_each_of_their_names() {
    let mut cluster = Cluster::start(tree::fill);
    let samba = SambaAd::start(&cluster);
    let password = "Anna-Passw0rd";
    samba.tool(&["domain", "passwordsettings", "set", "--account-lockout-threshold=3"]);
    for user in ["anna", "bob", "carl", "disabled", "expired"] {
        samba.tool(&["user", "create", user, password]);
    }
    samba.tool(&["group", "add", "Backup Admins"]);
    samba.tool(&["group", "add", "Team"]);
    samba.tool(&["group", "addmembers", "Backup Admins", "Team"]);
    samba.tool(&["group", "addmembers", "Team", "anna,disabled,expired"]);
    samba.tool(&["user", "disable", "disabled"]);
    samba.tool(&["user", "setexpiry", "expired", "--days=0"]);
    fs::write(cluster.path().join("service"), "Admin-Passw0rd\n").unwrap();
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(cluster.path().join("service"), fs::Permissions::from_mode(0o600)).unwrap();
    let more = r#"
[[directories]]
name = "ad"
kind = "active-directory"
uris = ["ldaps://127.0.0.1"]
ca = "pki/ca.pem"
bind_dn = "administrator@ad.example.org"
bind_password_file = "service"
base = "dc=ad,dc=example,dc=org"
[[grants]]
group = "Backup Admins"
rights = ["backup", "restore"]
domains = ["*"]
[[grants]]
group = "cn=domain users,cn=users,dc=ad,dc=example,dc=org"
directory = "ad"
rights = ["backup"]
domains = ["one.example"]
"#;
    cluster
        .restart_frontend(|config| config + more + "[ftp.bans]\naddress_failures = 0\ndelay_max = \"0s\"\n");
    let address = cluster.frontend.address;
    let domains = |name: &str| {
        let (code, mut control) = login(address, name, password);
        assert_eq!(code, 230, "{name}");
        String::from_utf8(control.fetch("NLST /domains").1).unwrap().matches(".example").count()
    };
    // By a nested group, whichever way the name is written; by the primary group alone.
    for name in ["anna", "anna@ad.example.org", "ADEX\\anna"] {
        assert_eq!(domains(name), 3, "{name}");
    }
    assert_eq!(domains("bob"), 1);
    for (name, reason) in [("disabled", "the account is disabled"), ("expired", "the account has expired")] {
        // Only who knows the password is told.
        for (typed, told) in [(password, reason), ("wrong", "The name or the password is wrong")] {
            let mut control = Control::connect(address);
            control.ask(&format!("USER {name}"));
            let (code, said) = control.ask(&format!("PASS {typed}"));
            assert!(code == 530 && said.contains(told), "{name} {typed}: {said}");
        }
        cluster.frontend.wait_for_log(reason);
    }
    // The directory's own lockout.
    for _ in 0..4 {
        assert_eq!(login(address, "carl", "wrong").0, 530);
    }
    assert_eq!(login(address, "carl", password).0, 530);
    cluster.frontend.wait_for_log("the account is locked");
    // Simple binds in plaintext are refused by a real one, and that is no failed login.
    cluster.edit_config(|config| config.replace("ldaps://127.0.0.1", "ldap://127.0.0.1"));
    cluster.reload();
    assert_eq!(login(address, "anna", password).0, 431);
    cluster.frontend.wait_for_log("code 8");
    // And a real client over all of it.
    cluster.edit_config(|config| config.replace("ldap://127.0.0.1", "ldaps://127.0.0.1"));
    cluster.reload();
    let fetched = curl_over(
        Protection::Explicit,
        &cluster,
        &["--user", &format!("anna@ad.example.org:{password}")],
        "/domains/one.example/domainRegistry.bin",
    );
    assert_eq!(succeeded(&fetched), "one.example");
    // The map by the users' entries, with an attribute that Active Directory has.
    for (user, node) in [("erin", "mail-1"), ("carol", "mail-3")] {
        let mail = format!("--mail-address={user}@mapped.example");
        samba.tool(&["user", "create", user, password, &mail, &format!("--department={node}")]);
    }
    let map = "[map.ldap]\ndirectory = \"ad\"\nnode_attribute = \"department\"\n\
               domain_attribute = \"extensionName\"\nuser_filter = \"(&(objectClass=user)(mail=*)(department=*))\"\n";
    cluster.restart_frontend(|config| config + map);
    for (user, node) in [("erin", "mail-1"), ("carol", "mail-3")] {
        let path = format!("/domains/mapped.example/users/{user}");
        let explained = succeeded(&cluster.operate(&["map", "explain", &path]));
        assert!(
            explained.contains("(by ldap)") && explained.contains(&format!("asked: {node}\n")),
            "{explained}"
        );
    }
    assert!(Path::new(&samba.config).is_file());
    assert!(!cluster.frontend.log().contains(password) && !cluster.frontend.log().contains(PASSWORD));
}

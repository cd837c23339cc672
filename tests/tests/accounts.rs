//! What directories say of single accounts, and names that are typed in other ways: OpenLDAP with a password policy, 389
//! Directory Server, and a directory that answers by a chosen code.

#![allow(clippy::unwrap_used)] // helpers of tests, which clippy does not know as such

use std::fs;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use portolan_tests::client::{Control, connect_from, succeed, succeeded};
use portolan_tests::{Cluster, eventually, free_port, http, tree};

/// A process of a directory. Killed when dropped.
struct Directory {
    child: Child,
    port: u16,
}

impl Directory {
    fn start(command: &mut Command, port: u16) -> Self {
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let directory = Self { child: child.expect("`tests/run` installs it"), port };
        eventually("the directory listens", || TcpStream::connect(("127.0.0.1", port)).ok());
        directory
    }

    fn uri(&self) -> String {
        format!("ldap://127.0.0.1:{}", self.port)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

const GRANTS: &str = "
[[grants]]
user = \"bob\"
rights = [\"backup\"]
domains = [\"*\"]
[[grants]]
user = \"good\"
rights = [\"backup\"]
domains = [\"*\"]
[ftp.bans]
";

/// Serves a directory, without pauses, and with these keys of bans. Other failures than of a name are none.
fn serve(cluster: &mut Cluster, uris: &[String], keys: &str, bans: &str) -> SocketAddr {
    let secret = cluster.path().join("service-password");
    fs::write(&secret, "service-password\n").unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
    let directory = format!(
        "[[directories]]\nname = \"corp\"\nkind = \"openldap\"\nuris = {uris:?}\ninsecure = true\n\
         bind_dn = \"cn=portolan,dc=example,dc=org\"\nbind_password_file = \"service-password\"\n\
         base = \"ou=people,dc=example,dc=org\"\n{keys}\n"
    );
    let bans = format!("delay_max = \"0s\"\naddress_failures = 0\n{bans}\n");
    let base = cluster.path().join("base.toml");
    if !base.try_exists().unwrap() {
        fs::copy(cluster.path().join("frontend.toml"), &base).unwrap();
    }
    let base = fs::read_to_string(base).unwrap();
    cluster.restart_frontend(|_| base + http::TABLE + &directory + GRANTS + &bans);
    cluster.frontend.address
}

/// The reply to a login.
fn login(address: SocketAddr, name: &str, password: &str) -> String {
    log_in_over(Control::connect(address), name, password)
}

fn log_in_over(mut control: Control, name: &str, password: &str) -> String {
    control.ask(&format!("USER {name}"));
    control.ask(&format!("PASS {password}")).1
}

fn login_from(last: u8, address: SocketAddr, name: &str, password: &str) -> String {
    let mut control = Control::over(connect_from(IpAddr::from([127, 0, 1, last]), address).unwrap());
    let (code, said) = control.reply();
    if code != 220 { said } else { log_in_over(control, name, password) }
}

const WRONG: &str = "530 The name or the password is wrong.";

fn coded(cluster: &Cluster, name: &str, code: u32) -> Directory {
    let port = free_port();
    let log = cluster.path().join(name);
    fs::write(&log, "").unwrap();
    let mut command = Command::new("python3");
    command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/clients/coded_directory.py"));
    command.arg(port.to_string()).arg(log).arg(code.to_string()).arg("of this account");
    Directory::start(&mut command, port)
}

/// What accounts are told whose password is right, where the directory's policy bars them.
const STATES: [(&str, &str); 3] = [
    ("barred", WRONG),
    ("must", "530 Not logged in: the password must be changed first."),
    ("expired", "530 Not logged in: the password has expired."),
];

#[test]
fn one_account_is_no_state_of_a_directory_whatever_code_it_gets() {
    let mut cluster = Cluster::start(tree::fill);
    // The account's: a failed login, at one server. The server's: the next one may know. Unclear: nobody is asked again.
    for (code, reply, tried) in [
        (53, WRONG, [1, 0]),
        (19, WRONG, [1, 0]),
        (50, WRONG, [1, 0]),
        (48, WRONG, [1, 0]),
        (49, WRONG, [1, 0]),
        (80, "431", [1, 0]),
        (1, "431", [1, 0]),
        (51, "431", [1, 1]),
        (8, "431", [1, 1]),
    ] {
        let (first, second) = (coded(&cluster, "first", code), coded(&cluster, "second", code));
        let address = serve(&mut cluster, &[first.uri(), second.uri()], "", "name_failures = 2");
        let said = login(address, "locked", "any");
        assert!(said.starts_with(reply), "{code}: {said}");
        let tries = |name: &str| {
            let log = fs::read_to_string(cluster.path().join(name)).unwrap();
            log.lines().filter(|line| line.starts_with("uid=locked")).count()
        };
        assert_eq!([tries("first"), tries("second")], tried, "{code}");
        let page = http::address(&cluster.frontend);
        let (status, told) = http::get(page, "/readyz");
        assert!(status == 200 && !told.contains("warning: directory"), "{code}: {told}");
        assert!(!cluster.frontend.log().contains("directory server does not answer"), "{code}");
        assert!(login(address, "good", "good-password").starts_with("230 "), "{code}");
        // What was a guess counts.
        let banned = login(address, "locked", "any");
        assert!(banned.starts_with(reply), "{code}: {banned}");
        let banned = login(address, "locked", "any");
        let expected = if reply == WRONG { "421" } else { "431" };
        assert!(banned.starts_with(expected), "{code}: {banned}");
        if reply == WRONG && code != 49 && code != 48 {
            cluster.frontend.wait_for_log(&format!("(code {code}: of this account)"));
        }
    }
}

#[test]
fn refusals_come_at_one_moment_whether_the_name_is_known_or_not() {
    let mut cluster = Cluster::start(tree::fill);
    let directory = coded(&cluster, "log", 49);
    let address = serve(&mut cluster, &[directory.uri()], "", "name_failures = 0");
    let took = |name: &str| {
        let mut control = Control::connect(address);
        control.ask(&format!("USER {name}"));
        let started = Instant::now();
        assert_eq!(control.ask("PASS wrong").1, WRONG);
        started.elapsed()
    };
    // Of a directory that is fast.
    for name in ["good", "missing", "admin", "good", "missing"] {
        let took = took(name);
        assert!(Duration::from_millis(245) < took && took < Duration::from_millis(450), "{name}: {took:?}");
    }
    // And of one whose binds are slow, once that is known.
    took("slow");
    for name in ["missing", "slow", "missing-too", "admin", "good"] {
        let took = took(name);
        assert!(Duration::from_millis(745) < took && took < Duration::from_millis(950), "{name}: {took:?}");
    }
}

/// slapd with a password policy and a person for each of its states.
fn slapd(folder: &Path) -> Directory {
    fs::create_dir_all(folder.join("db")).unwrap();
    let shown = folder.display();
    let config = format!(
        "include /etc/ldap/schema/core.schema\ninclude /etc/ldap/schema/cosine.schema\n\
         include /etc/ldap/schema/inetorgperson.schema\nmodulepath /usr/lib/ldap\nmoduleload back_mdb\n\
         moduleload ppolicy\npidfile {shown}/slapd.pid\ndatabase mdb\nsuffix \"dc=example,dc=org\"\n\
         rootdn \"cn=root,dc=example,dc=org\"\nrootpw root-password\ndirectory {shown}/db\n\
         overlay ppolicy\nppolicy_default \"cn=policy,dc=example,dc=org\"\nppolicy_use_lockout\n\
         access to attrs=userPassword by anonymous auth by * none\naccess to * by users read by * none\n"
    );
    fs::write(folder.join("slapd.conf"), config).unwrap();
    let mut people = "dn: dc=example,dc=org\nobjectClass: dcObject\nobjectClass: organization\ndc: example\no: Example\n\n\
        dn: ou=people,dc=example,dc=org\nobjectClass: organizationalUnit\nou: people\n\n\
        dn: cn=portolan,dc=example,dc=org\nobjectClass: organizationalRole\nobjectClass: simpleSecurityObject\n\
        cn: portolan\nuserPassword: service-password\n\n\
        dn: cn=policy,dc=example,dc=org\nobjectClass: device\nobjectClass: pwdPolicy\ncn: policy\n\
        pwdAttribute: userPassword\npwdLockout: TRUE\npwdMaxFailure: 3\npwdMustChange: TRUE\n\n\
        dn: cn=short,dc=example,dc=org\nobjectClass: device\nobjectClass: pwdPolicy\ncn: short\n\
        pwdAttribute: userPassword\npwdMaxAge: 1\n\n\
        dn: cn=open,dc=example,dc=org\nobjectClass: device\nobjectClass: pwdPolicy\ncn: open\n\
        pwdAttribute: userPassword\n"
        .to_owned();
    for (uid, state) in [
        // Its guesses are for the front end to count.
        ("bob", "pwdPolicySubentry: cn=open,dc=example,dc=org\n"),
        ("guessed", ""),
        ("barred", "pwdAccountLockedTime: 000001010000Z\n"),
        ("must", "pwdReset: TRUE\n"),
        ("expired", "pwdPolicySubentry: cn=short,dc=example,dc=org\npwdChangedTime: 20200101000000Z\n"),
    ] {
        people += &person(uid, state);
    }
    fs::write(folder.join("people.ldif"), people).unwrap();
    let mut add = Command::new("/usr/sbin/slapadd");
    succeed(add.arg("-f").arg(folder.join("slapd.conf")).arg("-l").arg(folder.join("people.ldif")));
    let port = free_port();
    let mut command = Command::new("/usr/sbin/slapd");
    command.args(["-h", &format!("ldap://127.0.0.1:{port}"), "-d", "0", "-f"]).arg(folder.join("slapd.conf"));
    Directory::start(&mut command, port)
}

fn person(uid: &str, state: &str) -> String {
    format!(
        "\ndn: uid={uid},ou=people,dc=example,dc=org\nobjectClass: inetOrgPerson\nuid: {uid}\ncn: {uid}\nsn: {uid}\n\
         userPassword: {uid}-password\n{state}"
    )
}

/// Nobody but who knows the password is told of the state, and no other login suffers.
fn states_are_told(cluster: &Cluster, address: SocketAddr, states: &[(&str, &str)]) {
    for (name, reply) in states {
        let said = login(address, name, &format!("{name}-password"));
        assert!(said.starts_with(reply), "{name}: {said}");
        assert_eq!(login(address, name, "wrong"), WRONG, "{name}");
    }
    for _ in 0..4 {
        assert_eq!(login(address, "guessed", "wrong"), WRONG);
    }
    assert_eq!(login(address, "guessed", "guessed-password"), WRONG, "the directory has locked it");
    assert!(login(address, "bob", "bob-password").starts_with("230 "));
    let (status, told) = http::get(http::address(&cluster.frontend), "/readyz");
    assert!(status == 200 && !told.contains("warning: directory"), "{told}");
    assert!(!cluster.frontend.log().contains("directory server does not answer"));
}

#[test]
fn openldaps_password_policy_bars_accounts_and_not_the_directory() {
    let mut cluster = Cluster::start(tree::fill);
    let slapd = slapd(&cluster.path().join("slapd"));
    let address = serve(&mut cluster, &[slapd.uri()], "", "name_failures = 0");
    states_are_told(&cluster, address, &STATES);
    cluster.frontend.wait_for_log("the account is locked");
}

/// 389 Directory Server in a folder of its own, from its template.
fn directory_389(folder: &Path) -> Directory {
    for part in ["etc/schema", "lock", "tmp", "ldif", "bak", "run", "inst", "log", "db"] {
        fs::create_dir_all(folder.join(part)).unwrap();
    }
    let schema = ["/etc/dirsrv/schema", "/usr/share/dirsrv/schema"].iter().map(Path::new);
    for file in schema.flat_map(|folder| fs::read_dir(folder).into_iter().flatten().flatten()) {
        fs::copy(file.path(), folder.join("etc/schema").join(file.file_name())).unwrap();
    }
    fs::copy("/etc/dirsrv/config/slapd-collations.conf", folder.join("etc/slapd-collations.conf")).unwrap();
    let port = free_port();
    let mut dse = fs::read_to_string("/usr/share/dirsrv/data/template-dse.ldif")
        .expect("`tests/run` installs 389-ds-base")
        .replace(
            "nsslapd-rootpw: %ds_passwd%",
            "nsslapd-rootpw: {CLEAR}root-password\nnsslapd-rootpwstoragescheme: CLEAR\n\
             nsslapd-listenhost: 127.0.0.1\npasswordLockout: on\npasswordMaxFailure: 3\npasswordMustChange: on\n\
             passwordExp: on\npasswordMaxAge: 86400000",
        );
    for (name, part) in [
        ("schema_dir", "etc/schema"),
        ("lock_dir", "lock"),
        ("tmp_dir", "tmp"),
        ("cert_dir", "etc"),
        ("config_dir", "etc"),
        ("ldif_dir", "ldif"),
        ("bak_dir", "bak"),
        ("run_dir", "run"),
        ("inst_dir", "inst"),
        ("log_dir", "log"),
        ("db_dir", "db"),
        ("db_home_dir", "db"),
        ("ldapi", "run/ldapi"),
    ] {
        dse = dse.replace(&format!("%{name}%"), folder.join(part).to_str().unwrap());
    }
    for (name, value) in [
        ("fqdn", "localhost"),
        ("ds_port", &*port.to_string()),
        ("ds_user", "root"),
        ("rootdn", "cn=root"),
        ("ds_suffix", "dc=example,dc=org"),
        ("db_lib", "bdb"),
        ("ldapi_enabled", "off"),
        ("ldapi_autobind", "off"),
    ] {
        dse = dse.replace(&format!("%{name}%"), value);
    }
    let dse = format!(
        "{}\n\ndn: cn=dc\\3Dexample\\2Cdc\\3Dorg,cn=mapping tree,cn=config\nobjectClass: top\n\
         objectClass: extensibleObject\nobjectClass: nsMappingTree\ncn: dc=example,dc=org\n\
         nsslapd-state: backend\nnsslapd-backend: userroot\n\n\
         dn: cn=userroot,cn=ldbm database,cn=plugins,cn=config\nobjectClass: top\nobjectClass: extensibleObject\n\
         objectClass: nsBackendInstance\ncn: userroot\nnsslapd-suffix: dc=example,dc=org\nnsslapd-directory: {}\n",
        dse.trim_end(),
        folder.join("db/userroot").display()
    );
    fs::write(folder.join("etc/dse.ldif"), dse).unwrap();
    let mut command = Command::new("ns-slapd");
    command.arg("-D").arg(folder.join("etc")).arg("-i").arg(folder.join("run/pid")).args(["-d", "0"]);
    // Its database is empty: the entries come over LDAP, so that its policy is applied to them.
    let directory = Directory::start(&mut command, port);
    let mut people = "dn: dc=example,dc=org\nobjectClass: top\nobjectClass: domain\ndc: example\n\
        aci: (targetattr=\"*\")(version 3.0; acl \"read\"; allow (read,search,compare) userdn=\"ldap:///all\";)\n\n\
        dn: ou=people,dc=example,dc=org\nobjectClass: organizationalUnit\nou: people\n\n\
        dn: cn=portolan,dc=example,dc=org\nobjectClass: organizationalRole\nobjectClass: simpleSecurityObject\n\
        cn: portolan\nuserPassword: service-password\n"
        .to_owned();
    for uid in ["bob", "guessed", "barred", "must", "expired"] {
        people += &person(uid, "");
    }
    let later = "20990101000000Z";
    for (entry, attribute, value) in [
        ("cn=portolan", "passwordExpirationTime", later),
        ("uid=bob,ou=people", "passwordExpirationTime", later),
        ("uid=guessed,ou=people", "passwordExpirationTime", later),
        ("uid=barred,ou=people", "nsAccountLock", "true"),
        ("uid=expired,ou=people", "passwordExpirationTime", "20200101000000Z"),
    ] {
        people += &format!(
            "\ndn: {entry},dc=example,dc=org\nchangetype: modify\nreplace: {attribute}\n{attribute}: {value}\n"
        );
    }
    let file = folder.join("people.ldif");
    fs::write(&file, people).unwrap();
    let mut add = Command::new("ldapmodify");
    add.args(["-a", "-x", "-H", &directory.uri(), "-D", "cn=root", "-w", "root-password", "-f"]).arg(file);
    succeed(&mut add);
    directory
}

#[test]
fn a_locked_account_of_389_directory_server_is_refused_and_others_log_in() {
    let mut cluster = Cluster::start(tree::fill);
    let directory = directory_389(&cluster.path().join("389"));
    let address = serve(&mut cluster, &[directory.uri()], "", "name_failures = 0");
    states_are_told(&cluster, address, &STATES);
    cluster.frontend.wait_for_log("code 53: Account inactivated");
    cluster.frontend.wait_for_log("code 19: Exceed password retry limit");
    // Also where nothing but the entry can be asked.
    for (name, reason) in [("barred", "the account is disabled"), ("guessed", "the account is locked")] {
        let shown = Command::new(portolan_tests::program("portolan"))
            .args(["auth", "test", name, "--config"])
            .arg(cluster.path().join("frontend.toml"))
            .output()
            .unwrap();
        let shown = portolan_tests::client::text(&shown);
        assert!(shown.contains(reason), "{shown}");
    }
}

#[test]
fn a_ban_of_a_name_holds_however_the_name_is_typed() {
    let mut cluster = Cluster::start(tree::fill);
    let slapd = slapd(&cluster.path().join("slapd"));
    let by_local = "filter = \"(uid={local})\"";
    for spellings in [
        // As the directory compares names; and as its filter finds the entry.
        ["bob", " bob", "\u{ff22}\u{ff4f}\u{ff42}", "BOB  ", "bo\u{ad}b"],
        ["bob@one.example", "CORP\\bob", "bob@two.example", "bob@three.example", "bob@four.example"],
    ] {
        let address = serve(&mut cluster, &[slapd.uri()], by_local, "name_failures = 4");
        // Where it has logged in before it may go on, by each of its names.
        for name in ["bob", " bob", "bob@one.example"] {
            assert_eq!(login_from(9, address, name, "bob-password"), "230 Welcome, bob.", "{name}");
        }
        for (at, name) in spellings.iter().take(4).enumerate() {
            let from = u8::try_from(at).unwrap() + 1;
            assert_eq!(login_from(from, address, name, "wrong"), WRONG, "{name}");
        }
        for name in spellings {
            let said = login_from(6, address, name, "bob-password");
            assert!(said.starts_with("421 "), "{name}: {said}");
        }
        let shown = succeeded(&cluster.operate(&["bans"]));
        assert!(shown.contains("name  bob  "), "{shown}");
        for name in ["bob", " bob", "bob@one.example"] {
            assert_eq!(login_from(9, address, name, "bob-password"), "230 Welcome, bob.", "{name}");
        }
        succeeded(&cluster.operate(&["bans", "lift", "Bob "]));
        assert_eq!(login_from(6, address, spellings[1], "bob-password"), "230 Welcome, bob.");
        // The audit has the name of the directory.
        assert!(cluster.frontend.log().contains("\"admin\":\"bob\""));
    }
    // A name that no directory compares is nobody's.
    let address = cluster.frontend.address;
    for name in ["bob\u{e000}", "\u{200b}", "bob\u{fffd}"] {
        assert_eq!(login_from(7, address, name, "bob-password"), WRONG, "{name}");
    }
}

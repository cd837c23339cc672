//! A listener's TLS, the address that PASV names, and its bandwidth.

#![allow(clippy::unwrap_used)] // helpers of tests, which clippy does not know as such

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use portolan_tests::client::{Control, lftp, succeed, succeeded, text};
use portolan_tests::{Cluster, PASSWORD, eventually, program, tree};

const FILE: &str = "/domains/one.example/domainRegistry.bin";

/// Makes certificates signed by the authority of the cluster, or of another one in `folder`.
fn certify(cluster: &Cluster, folder: &str, arguments: &[&str]) {
    let folder = cluster.path().join(folder);
    succeed(Command::new(program("portolan")).args(["pki", "init"]).arg(folder).args(arguments));
}

/// A cluster whose listener has these keys, and that has certificates for `second.example` and `*.third.example`.
fn cluster(keys: &str) -> Cluster {
    let mut cluster = Cluster::start(tree::fill);
    certify(&cluster, "pki", &["--frontend=second", "--alias=second.example"]);
    certify(&cluster, "pki", &["--frontend=third", "--alias=*.third.example"]);
    certify(&cluster, "foreign", &["--frontend=stranger"]);
    cluster.restart_with(keys);
    cluster
}

/// curl as `admin` over explicit TLS, asking for the front end by a name.
fn curl(cluster: &Cluster, name: &str, arguments: &[&str]) -> std::process::Output {
    let port = cluster.frontend.address.port();
    Command::new("curl")
        .args(["--silent", "--show-error", "--max-time", "30", "--ssl-reqd"])
        .args(["--user", &format!("admin:{PASSWORD}"), "--cacert"])
        .arg(cluster.authority())
        .args(["--resolve", &format!("{name}:{port}:127.0.0.1")])
        .args(arguments)
        .arg(format!("ftp://{name}:{port}{FILE}"))
        .output()
        .unwrap()
}

#[test]
fn the_certificate_is_the_one_for_the_name_that_the_client_asks_for() {
    let cluster = cluster(
        "more_certificates = [{ certificate = \"pki/second.pem\", key = \"pki/second-key.pem\" }, \
         { certificate = \"pki/third.pem\", key = \"pki/third-key.pem\" }]",
    );
    for name in ["second.example", "a.third.example", "front-1"] {
        assert_eq!(succeeded(&curl(&cluster, name, &[])), "one.example", "{name}");
    }
    let other = curl(&cluster, "fourth.example", &[]);
    assert!(text(&other).contains("no alternative certificate subject name matches"), "{}", text(&other));

    // By HOST, for a client that names nobody in its handshake (RFC 7151).
    let script = "import ftplib, socket, ssl, sys\n\
        context = ssl.create_default_context(cafile=sys.argv[2])\n\
        context.check_hostname = False\n\
        ftp = ftplib.FTP()\n\
        ftp.connect('127.0.0.1', int(sys.argv[1]))\n\
        assert ftp.sendcmd('HOST ' + sys.argv[3]).startswith('220')\n\
        assert ftp.sendcmd('AUTH TLS').startswith('234')\n\
        ftp.sock = context.wrap_socket(ftp.sock)\n\
        ftp.file = ftp.sock.makefile('r', encoding='utf-8')\n\
        print([name for kind, name in ftp.sock.getpeercert()['subjectAltName']])\n\
        ftp.login('admin', sys.argv[4])\n";
    for (host, shown) in
        [("second.example", "second.example"), ("b.third.example", "*.third.example"), ("x", "front-1")]
    {
        let names = succeed(
            Command::new("python3")
                .args(["-c", script, &cluster.frontend.address.port().to_string()])
                .arg(cluster.authority())
                .args([host, PASSWORD]),
        );
        assert!(names.contains(&format!("'{shown}'")), "{host}: {names}");
    }
}

#[test]
fn only_the_versions_of_tls_that_are_allowed_are_spoken() {
    for (versions, v1_2, v1_3) in [
        ("", true, true),
        ("tls_versions = [\"1.2\"]", true, false),
        ("tls_versions = [\"1.3\"]", false, true),
    ] {
        let cluster = cluster(versions);
        let speaks =
            |least: &str, most: &str| curl(&cluster, "front-1", &[least, "--tls-max", most]).status.success();
        assert_eq!(speaks("--tlsv1.2", "1.2"), v1_2, "{versions}");
        assert_eq!(speaks("--tlsv1.3", "1.3"), v1_3, "{versions}");
        assert!(!speaks("--tlsv1.0", "1.1"));
    }
}

#[test]
fn a_client_certificate_is_demanded_or_only_looked_at() {
    for (word, without, with_foreign) in [("required", false, false), ("optional", true, false)] {
        let cluster = cluster(&format!("client_certificate = \"{word}\"\nclient_ca = \"pki/ca.pem\""));
        let certificate = |folder: &str, name: &str| {
            let file = |end: &str| {
                cluster.path().join(folder).join(format!("{name}{end}")).to_string_lossy().into_owned()
            };
            curl(&cluster, "front-1", &["--cert", &file(".pem"), "--key", &file("-key.pem")])
        };
        assert_eq!(curl(&cluster, "front-1", &[]).status.success(), without, "{word}");
        assert_eq!(succeeded(&certificate("pki", "second")), "one.example", "{word}");
        assert_eq!(certificate("foreign", "stranger").status.success(), with_foreign, "{word}");
        // A new authority is taken without a restart, and what was resumable under the old one is not any more.
        fs::copy(cluster.path().join("foreign/ca.pem"), cluster.path().join("pki/clients.pem")).unwrap();
        cluster.edit_config(|config| {
            config.replace("client_ca = \"pki/ca.pem\"", "client_ca = \"pki/clients.pem\"")
        });
        cluster.reload();
        assert_eq!(succeeded(&certificate("foreign", "stranger")), "one.example", "{word}");
        assert!(!certificate("pki", "second").status.success());
    }
}

/// curl with the certificate of an admin, and with a password.
fn curl_certified(cluster: &Cluster, certificate: &str, user: &str) -> std::process::Output {
    let file = |end: &str| format!("{}/pki/{certificate}{end}", cluster.path().display());
    let arguments = ["--cert", &file(".pem"), "--key", &file("-key.pem"), "--user", user];
    curl(cluster, "front-1", &arguments)
}

#[test]
fn a_certificate_takes_the_place_of_a_password_or_is_asked_for_beside_it() {
    let right = format!("reader:{PASSWORD}");
    for (login, client, cases) in [
        // Certificate, name and password, and whether that lets in.
        (
            "or-password",
            "optional",
            [
                ("reader", "reader:", true),
                ("reader", &*right, true),
                ("second", &right, true),
                ("second", "reader:", false),
            ],
        ),
        (
            "and-password",
            "required",
            [
                ("reader", "reader:", false),
                ("reader", &right, true),
                ("second", &right, false),
                ("reader", "reader:wrong", false),
            ],
        ),
        (
            "alone",
            "required",
            [
                ("reader", "reader:", true),
                ("reader", "reader:wrong", true),
                ("second", &right, false),
                ("reader", "admin:", false),
            ],
        ),
    ] {
        for name in ["common-name", "dns"] {
            let cluster = cluster(&format!(
                "client_certificate = \"{client}\"\nclient_ca = \"pki/ca.pem\"\n\
                 certificate_login = \"{login}\"\ncertificate_name = \"{name}\""
            ));
            certify(&cluster, "pki", &["--frontend=reader"]);
            for (certificate, user, let_in) in cases {
                let fetched = curl_certified(&cluster, certificate, user);
                assert_eq!(
                    fetched.status.success(),
                    let_in,
                    "{login} {name} {certificate} {user}: {}",
                    text(&fetched)
                );
                assert!(!let_in || text(&fetched) == "one.example");
            }
            if login != "and-password" {
                // Another client, and one certificate for all connections.
                let script = format!(
                    "set ssl:ca-file {0}; set ssl:cert-file {1}/pki/reader.pem; set ssl:key-file {1}/pki/reader-key.pem; \
                     set net:max-retries 1; set cmd:fail-exit true; set ssl:check-hostname false; \
                     open -u reader,x ftp://127.0.0.1:{2}; cat {FILE}",
                    cluster.authority().display(),
                    cluster.path().display(),
                    cluster.frontend.address.port()
                );
                assert_eq!(
                    succeed(Command::new("timeout").args(["60", "lftp", "-c", &script])),
                    "one.example"
                );
                cluster.frontend.wait_for_log("\"by\":\"certificate\"");
            }
        }
    }
}

/// What openssl's s_client gets for USER.
fn user_by_openssl(cluster: &Cluster, arguments: &[&str]) -> String {
    let address = cluster.frontend.address.to_string();
    let mut client = Command::new("timeout");
    client.args(["10", "openssl", "s_client", "-quiet", "-starttls", "ftp", "-connect", &address]);
    let mut child = client
        .args(arguments)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    std::io::Write::write_all(child.stdin.as_mut().unwrap(), b"USER reader\r\nQUIT\r\n").ok();
    String::from_utf8_lossy(&child.wait_with_output().unwrap().stdout).into_owned()
}

/// A certificate for `reader` by the authority of the cluster, which soon expires.
fn certify_for(cluster: &Cluster, lasts: Duration) {
    use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair};
    let pki = cluster.path().join("pki");
    let read = |name: &str| fs::read_to_string(pki.join(name)).unwrap();
    let authority = KeyPair::from_pem(&read("ca-key.pem")).unwrap();
    let issuer = Issuer::from_ca_cert_pem(&read("ca.pem"), authority).unwrap();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "reader");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params.not_after = (std::time::SystemTime::now() + lasts).into();
    let certificate = params.signed_by(&key, &issuer).unwrap();
    fs::write(pki.join("brief.pem"), certificate.pem() + &read("ca.pem")).unwrap();
    fs::write(pki.join("brief-key.pem"), key.serialize_pem()).unwrap();
}

#[test]
fn a_certificate_that_has_expired_logs_nobody_in_not_even_over_a_resumed_session() {
    let cluster = cluster(
        "client_certificate = \"required\"\nclient_ca = \"pki/ca.pem\"\ncertificate_login = \"alone\"",
    );
    let file = |name: &str| cluster.path().join("pki").join(name).to_string_lossy().into_owned();
    let began = Instant::now();
    certify_for(&cluster, Duration::from_secs(6));
    for version in ["-tls1_2", "-tls1_3"] {
        let (certificate, key, kept) = (file("brief.pem"), file("brief-key.pem"), file(version));
        let shown = ["-cert", &certificate, "-key", &key, version];
        let said = user_by_openssl(&cluster, &[&shown[..], &["-sess_out", &kept]].concat());
        assert!(said.contains("232 "), "{version}: {said}");
        // The session is good as long as the certificate is.
        let said = user_by_openssl(&cluster, &["-sess_in", &kept, version]);
        assert!(said.contains("232 "), "{version}: {said}");
    }
    std::thread::sleep(Duration::from_secs(7).saturating_sub(began.elapsed()));
    for version in ["-tls1_2", "-tls1_3"] {
        let said = user_by_openssl(&cluster, &["-sess_in", &file(version), version]);
        assert!(!said.contains("232 "), "{version}: {said}");
    }
    cluster.frontend.wait_for_log("the client's certificate has expired");
}

#[test]
fn tls_may_be_required_for_logins_and_for_data_each_by_itself() {
    let data_only = cluster("tls_required = false\ntls_data_required = true");
    let mut control = Control::login(data_only.frontend.address, "admin");
    assert_eq!(control.fetch(&format!("RETR {FILE}")).0, 521);
    assert_eq!(succeeded(&curl(&data_only, "front-1", &[])), "one.example");

    let login_only = cluster("tls_required = true\ntls_data_required = false");
    assert_eq!(Control::connect(login_only.frontend.address).ask("USER admin").0, 530);
    let port = login_only.frontend.address.port();
    let clear = format!(
        "set ftp:ssl-protect-data false; set ftp:ssl-protect-list false; set ssl:ca-file {}; set net:max-retries 1; \
         set ssl:check-hostname false; open -u admin,{PASSWORD} ftp://127.0.0.1:{port}; cat {FILE}",
        login_only.authority().display()
    );
    assert_eq!(succeed(Command::new("timeout").args(["60", "lftp", "-c", &clear])), "one.example");
}

#[test]
fn data_connections_resume_the_tls_session_of_their_control_connection_across_a_reload() {
    let cluster = cluster("session_reuse = \"require\"");
    let reload = format!(
        "!{} reload --socket {}",
        program("portolan").display(),
        cluster.path().join("control.sock").display()
    );
    cluster.edit_config(|config| config.replace("passive_ports", "idle_timeout = \"60s\"\npassive_ports"));
    let shown =
        succeeded(&lftp(&cluster, &format!("cat {FILE}\n{reload}\ncat {FILE}\ncls /domains/two.example\n")));
    assert!(shown.contains("listener 127.0.0.1:0 is changed"), "{shown}");
    assert_eq!(shown.matches("one.example").count(), 2, "{shown}");
}

/// What PASV says.
fn pasv(cluster: &Cluster) -> (u16, String) {
    Control::login(cluster.frontend.address, "admin").ask("PASV")
}

#[test]
fn pasv_names_the_address_that_is_right_for_the_client() {
    for (keys, named) in [
        ("", "227 Entering Passive Mode (127,0,0,1,"),
        ("passive_address = \"192.0.2.7\"", "227 Entering Passive Mode (192,0,2,7,"),
        ("passive_address = \"localhost\"", "227 Entering Passive Mode (127,0,0,1,"),
        (
            "passive_address = \"no.such.host.invalid\"",
            "425 The address for PASV is not known yet; use EPSV, or try again.",
        ),
        (
            "passive_address = \"192.0.2.7\"\npassive_addresses = [{ clients = \"10.0.0.0/8\", address = \"192.0.2.8\" }, \
             { clients = \"127.0.0.0/8\", address = \"192.0.2.9\" }]",
            "227 Entering Passive Mode (192,0,2,9,",
        ),
    ] {
        let cluster = cluster(keys);
        let (_, said) = pasv(&cluster);
        assert!(said.starts_with(named), "{keys}: {said}");
        // EPSV names no address.
        assert_eq!(Control::login(cluster.frontend.address, "admin").fetch(&format!("RETR {FILE}")).0, 226);
    }
}

#[test]
fn a_name_for_pasv_is_followed_when_it_moves() {
    let cluster = cluster("passive_address = \"moving.example\"");
    // A front end that sees another /etc/hosts.
    let (hosts, config) = (cluster.path().join("hosts"), cluster.path().join("second.toml"));
    let text = fs::read_to_string(cluster.path().join("frontend.toml")).unwrap();
    fs::write(&config, text.replace("control.sock", "second.sock")).unwrap();
    let say = |address: &str| {
        fs::write(&hosts, format!("{address} moving.example\n127.0.0.1 localhost\n")).unwrap()
    };
    say("192.0.2.1");
    let log = cluster.path().join("second.log");
    let mut child = Command::new("unshare")
        .args(["--mount", "sh", "-c", "mount --bind \"$1\" /etc/hosts && exec \"$2\" --config \"$3\"", "sh"])
        .arg(&hosts)
        .arg(program("portolan-frontend"))
        .arg(&config)
        .stderr(fs::File::create(&log).unwrap())
        .spawn()
        .unwrap();
    let address = eventually("it serves", || {
        let log = fs::read_to_string(&log).unwrap();
        let line = log.lines().find(|line| line.contains("front end serves"))?.to_owned();
        line.split("\"address\":\"").nth(1)?.split('"').next()?.parse().ok()
    });
    let named = |address| Control::login(address, "admin").ask("PASV").1;
    assert!(named(address).contains("(192,0,2,1,"), "{}", named(address));
    say("192.0.2.2");
    // By itself within half a minute; a reload looks at once.
    let mut reload = Command::new(program("portolan"));
    succeed(reload.arg("reload").arg("--socket").arg(cluster.path().join("second.sock")));
    assert!(named(address).contains("(192,0,2,2,"), "{}", named(address));
    // One that does not resolve any more keeps what was known.
    fs::write(&hosts, "").unwrap();
    let mut reload = Command::new(program("portolan"));
    succeed(reload.arg("reload").arg("--socket").arg(cluster.path().join("second.sock")));
    assert!(named(address).contains("(192,0,2,2,"), "{}", named(address));
    child.kill().unwrap();
    child.wait().unwrap();
}

/// Seconds that something takes.
fn seconds(action: impl FnOnce()) -> f64 {
    let started = Instant::now();
    action();
    started.elapsed().as_secs_f64()
}

const BYTES: usize = 3 << 20;

fn fetch(cluster: &Cluster) {
    let mut control = Control::login(cluster.frontend.address, "admin");
    let (code, content) = control.fetch("RETR /domains/one.example/paced");
    assert_eq!((code, content.len()), (226, BYTES));
}

fn store(cluster: &Cluster) {
    let mut control = Control::login(cluster.frontend.address, "admin");
    assert_eq!(control.store("/domains/one.example/stored", &vec![7; BYTES]), 226);
}

#[test]
fn content_goes_as_fast_as_session_admin_and_listener_allow() {
    for engine in ["native", "libunftp"] {
        // Each: keys, tables, what is limited (down, up), and how many sessions share it.
        for (keys, tables, down, up, shared) in [
            ("session_bandwidth = { down = \"4MiB\" }", "", true, false, false),
            ("session_bandwidth = { up = \"4MiB\" }", "", false, true, false),
            ("", "[ftp.admin_bandwidth]\ndown = \"4MiB\"\nup = \"4MiB\"\n", true, true, true),
            ("bandwidth = { down = \"4MiB\", up = \"4MiB\" }", "", true, true, true),
        ] {
            let mut cluster = cluster(&format!("engine = \"{engine}\"\n{keys}"));
            if !tables.is_empty() {
                cluster.restart_frontend(|config| config + tables);
            }
            fs::write(cluster.domains(1).join("one.example/paced"), vec![7; BYTES]).unwrap();
            for (action, limited) in [(fetch as fn(&Cluster), down), (store, up)] {
                let alone = || seconds(|| action(&cluster));
                let together = || {
                    seconds(|| {
                        std::thread::scope(|scope| {
                            scope.spawn(|| fetch(&cluster));
                            scope.spawn(|| fetch(&cluster));
                        });
                    })
                };
                // 3 MiB at 4 MiB/s.
                let what = format!("{engine} {keys} {tables}");
                assert_pace(&what, alone, 0.7, limited);
                if down {
                    assert_pace(&format!("{what}, two"), together, 1.4, shared);
                }
            }
        }
    }
}

/// That `action` takes `least` seconds, and not many times as long, where it is limited, and less where it is not: a machine
/// that is busy with something else makes both slower, and neither faster.
fn assert_pace(what: &str, action: impl Fn() -> f64, least: f64, limited: bool) {
    if limited {
        let took = action();
        assert!((least..6.0 * least).contains(&took), "{what}: {took} s");
    } else {
        assert!((0..10).any(|_| action() < least), "{what}: never below {least} s");
    }
}

#[test]
fn a_reload_changes_the_bandwidth_of_transfers_that_are_under_way() {
    for engine in ["native", "libunftp"] {
        let cluster = cluster(&format!("engine = \"{engine}\"\nsession_bandwidth = {{ down = \"64KiB\" }}"));
        fs::write(cluster.domains(1).join("one.example/paced"), vec![7; BYTES]).unwrap();
        let took = seconds(|| {
            std::thread::scope(|scope| {
                scope.spawn(|| fetch(&cluster));
                std::thread::sleep(Duration::from_secs(2));
                let shown = succeeded(&cluster.operate(&["status"]));
                assert!(shown.contains("RETR /domains/one.example/paced: 1"), "{shown}");
                cluster.edit_config(|config| config.replace("64KiB", "512MiB"));
                cluster.reload();
            });
        });
        assert!((2.0..6.0).contains(&took), "{engine}: {took} s, and 48 s without the reload");
    }
}

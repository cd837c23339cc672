//! Distinguished names (RFC 4514) in a form that can be compared.
//!
//! Who calls it: the check of grants; the front end, with the DNs of groups that a directory shows.
//! What it calls: nothing.
//! What it never does: repair a DN. One that does not follow the RFC equals none.

use std::collections::BTreeSet;
use std::fmt;

/// Types that have a name of their own (RFC 4514 section 3), by OID.
const NAMED_TYPES: [(&str, &str); 9] = [
    ("2.5.4.3", "cn"),
    ("2.5.4.6", "c"),
    ("2.5.4.7", "l"),
    ("2.5.4.8", "st"),
    ("2.5.4.9", "street"),
    ("2.5.4.10", "o"),
    ("2.5.4.11", "ou"),
    ("0.9.2342.19200300.100.1.1", "uid"),
    ("0.9.2342.19200300.100.1.25", "dc"),
];

/// A distinguished name. Two are equal where a directory takes them for the same: whatever the case, the escapes, the
/// blanks around and between words, and the order within a part of several attributes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Dn {
    /// Lower case, each special character escaped by a backslash, the attributes of each part in order.
    canonical: String,
    /// The values of the first part that are text, as [`folded`] gives them.
    first: BTreeSet<String>,
}

/// The text is no DN.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this is no distinguished name (RFC 4514)")]
pub struct NotADn;

impl Dn {
    pub fn parse(text: &str) -> Result<Self, NotADn> {
        let mut parts: Vec<Vec<(String, Value)>> = Vec::new();
        let mut rest = text.trim_start_matches(' ');
        let mut part = Vec::new();
        while !rest.is_empty() || !part.is_empty() {
            let (name, after) = rest.split_once('=').ok_or(NotADn)?;
            let (value, end) = value(after)?;
            part.push((attribute_type(name.trim_matches(' '))?, value));
            match end.chars().next() {
                Some('+') => rest = &end[1..],
                // After a separator there is one more.
                Some(',') if end.len() > 1 => {
                    parts.push(std::mem::take(&mut part));
                    rest = &end[1..];
                }
                Some(_) => return Err(NotADn),
                None => {
                    parts.push(std::mem::take(&mut part));
                    rest = end;
                }
            }
        }
        let first = parts.first().into_iter().flatten();
        let first = first.filter_map(|(_, value)| match value {
            Value::Text(text) => Some(text.clone()),
            Value::Encoded(_) => None,
        });
        let first = first.collect();
        let shown = parts.iter().map(|part| {
            let mut attributes: Vec<_> = part.iter().map(|(name, value)| format!("{name}={value}")).collect();
            attributes.sort();
            attributes.join("+")
        });
        Ok(Self { canonical: shown.collect::<Vec<_>>().join(","), first })
    }

    pub fn as_str(&self) -> &str {
        &self.canonical
    }

    /// Is this the value of its first part?
    pub fn is_named(&self, name: &str) -> bool {
        let name = folded(name);
        !name.is_empty() && self.first.contains(&name)
    }
}

#[derive(Debug)]
enum Value {
    Text(String),
    /// `#` and the hex digits of an encoding that is not looked into.
    Encoded(String),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Value::Encoded(hex) => return write!(f, "#{hex}"),
            Value::Text(text) => text,
        };
        for (at, char) in text.char_indices() {
            match char {
                '"' | '+' | ',' | ';' | '<' | '>' | '\\' => write!(f, "\\{char}")?,
                '#' if at == 0 => f.write_str("\\#")?,
                // Not as they are: it is shown on terminals.
                _ if char.is_control() => {
                    for byte in char.encode_utf8(&mut [0; 4]).bytes() {
                        write!(f, "\\{byte:02x}")?;
                    }
                }
                _ => write!(f, "{char}")?,
            }
        }
        Ok(())
    }
}

/// A name, or the digits of an OID (RFC 4512 section 1.4).
fn attribute_type(name: &str) -> Result<String, NotADn> {
    let is_name = name.starts_with(|first: char| first.is_ascii_alphabetic())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    let is_oid = name.contains('.')
        && name.split('.').all(|arc| {
            !arc.is_empty()
                && arc.bytes().all(|byte| byte.is_ascii_digit())
                && (arc == "0" || !arc.starts_with('0'))
        });
    if !is_name && !is_oid {
        return Err(NotADn);
    }
    let known = NAMED_TYPES.iter().find(|(oid, _)| *oid == name);
    Ok(known.map_or_else(|| name.to_ascii_lowercase(), |(_, name)| (*name).to_owned()))
}

/// Reads a value; what follows it begins with its separator.
fn value(text: &str) -> Result<(Value, &str), NotADn> {
    let text = text.trim_start_matches(' ');
    if let Some(hex) = text.strip_prefix('#') {
        let (hex, rest) = hex.split_at(hex.find([',', '+']).unwrap_or(hex.len()));
        let hex = hex.trim_end_matches(' ');
        let good = !hex.is_empty()
            && hex.len().is_multiple_of(2)
            && hex.bytes().all(|byte| byte.is_ascii_hexdigit());
        return if good { Ok((Value::Encoded(hex.to_ascii_lowercase()), rest)) } else { Err(NotADn) };
    }
    let bytes = text.as_bytes();
    let (mut read, mut at) = (Vec::new(), 0);
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b',' | b'+' => break,
            b'\0' | b'"' | b';' | b'<' | b'>' => return Err(NotADn),
            b'\\' => {
                let escaped = *bytes.get(at + 1).ok_or(NotADn)?;
                if b" \"#+,;<=>\\".contains(&escaped) {
                    read.push(escaped);
                    at += 2;
                } else {
                    let digit =
                        |at| bytes.get(at).and_then(|digit| char::from(*digit).to_digit(16)).ok_or(NotADn);
                    read.push(u8::try_from(digit(at + 1)? * 16 + digit(at + 2)?).expect("two hex digits"));
                    at += 3;
                }
            }
            _ => {
                read.push(byte);
                at += 1;
            }
        }
    }
    let read = String::from_utf8(read).map_err(|_| NotADn)?;
    Ok((Value::Text(folded(&read)), &text[at..]))
}

/// A value as directories compare it: whatever the case, and with one blank for several (RFC 4518 section 2.6.1).
fn folded(value: &str) -> String {
    value.split(' ').filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ").to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_follow_the_rfc_is_no_dn() {
        for text in [
            "anna",
            "=anna",
            "cn",
            "cn=anna,",
            "cn=anna, ",
            ",cn=anna",
            "cn=anna,,dc=org",
            "cn=anna+",
            "cn=anna+,dc=org",
            "cn=anna;dc=org",
            "cn=a\"b\"",
            "cn=\"Sue, Grabbit\",o=example",
            "cn=a<b",
            "cn=a>b",
            "cn=anna\\",
            "cn=anna\\4",
            "cn=anna\\zz",
            "cn=anna\\é",
            "cn=\\ff\\fe",
            "cn=\\c3",
            "cn=a\0b",
            "cn=#",
            "cn=#0",
            "cn=#0g",
            "cn=#04 02",
            "c n=anna",
            "1cn=anna",
            "é=anna",
            "2.5.=anna",
            "2..5=anna",
            "2.05=anna",
            "25=anna",
            "oid.2.5.4.3=anna",
            "cn\\=a=b",
        ] {
            assert_eq!(Dn::parse(text), Err(NotADn), "{text:?}");
        }
    }

    #[test]
    fn examples_of_the_rfc_are_read() {
        for (text, canonical) in [
            ("", ""),
            ("UID=jsmith,DC=example,DC=net", "uid=jsmith,dc=example,dc=net"),
            ("OU=Sales+CN=J.  Smith,DC=example,DC=net", "cn=j. smith+ou=sales,dc=example,dc=net"),
            (
                r#"CN=James \"Jim\" Smith\, III,DC=example,DC=net"#,
                r#"cn=james \"jim\" smith\, iii,dc=example,dc=net"#,
            ),
            (r"CN=Before\0dAfter,DC=example,DC=net", r"cn=before\0dafter,dc=example,dc=net"),
            ("1.3.6.1.4.1.1466.0=#04024869", "1.3.6.1.4.1.1466.0=#04024869"),
            (r"CN=Lu\C4\8Di\C4\87", "cn=lučić"),
        ] {
            assert_eq!(Dn::parse(text).as_ref().map(Dn::as_str), Ok(canonical), "{text:?}");
        }
    }

    #[test]
    fn same_names_are_equal_and_others_are_not() {
        let dn = |text| Dn::parse(text).unwrap();
        for (one, other) in [
            ("CN=Backup Admins, OU=Groups , DC=org", "cn=backup  admins,ou=groups,dc=org"),
            (r"cn=a\2Cb", r"CN=A\,b"),
            (r"cn=a\3db", "cn=a=b"),
            (r"cn=\23a", r"cn=\#a"),
            (r"cn=\ a\ ", "cn=a"),
            ("cn=a+ou=b,dc=org", "OU=b + CN=a,DC=org"),
            ("2.5.4.3=anna,0.9.2342.19200300.100.1.25=org", "cn=anna,dc=org"),
            (r"cn=\c3\a9", r"cn=\C3\A9"),
            ("cn=#0402AB", "cn=#0402ab"),
            ("cn=ÉMILE", "cn=émile"),
        ] {
            assert_eq!(dn(one), dn(other), "{one:?} {other:?}");
        }
        for (one, other) in [
            (r"cn=a\,ou=b", "cn=a,ou=b"),
            (r"cn=a\+ou=b", "cn=a+ou=b"),
            ("cn=a+ou=b", "cn=a,ou=b"),
            ("cn=a,ou=b", "ou=b,cn=a"),
            (r"cn=a\, b", r"cn=a\,b"),
            ("cn=a b", "cn=ab"),
            (r"cn=a\\,ou=b", r"cn=a\,ou=b"),
            (r"cn=\#0402", "cn=#0402"),
            ("cn=a", "ou=a"),
            (r"cn=a\00", "cn=a"),
            ("cn=", "cn=a"),
            ("", "cn=a"),
        ] {
            assert_ne!(dn(one), dn(other), "{one:?} {other:?}");
        }
    }

    #[test]
    fn the_first_part_names_it() {
        let dn = Dn::parse(r"CN=Smith\, Anna+UID=7,OU=Groups,DC=org").unwrap();
        for name in ["Smith, Anna", "smith,  anna ", "7"] {
            assert!(dn.is_named(name), "{name:?}");
        }
        for name in ["", "smith", r"Smith\, Anna", "cn=smith, anna", "groups", "org"] {
            assert!(!dn.is_named(name), "{name:?}");
        }
        for text in ["", "cn="] {
            assert!(!Dn::parse(text).unwrap().is_named(""), "{text:?}");
        }
    }
}

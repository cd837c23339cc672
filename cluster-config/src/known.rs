//! The keys that a table of the raw form knows, and which of them an unknown key may stand for: one of an older version, or
//! one that is written wrongly.
//!
//! Who calls it: `raw`, for each key that it does not know.
//! What it calls: the raw form's own deserialization, so that no list of keys is kept by hand.
//! What it never does: decide that a key is another one. It is a fault all the same.

use std::cell::Cell;
use std::iter::once;

use serde::de::value::{Error, MapDeserializer, SeqDeserializer};
use serde::de::{DeserializeOwned, Deserializer, Error as _, IntoDeserializer, Visitor};
use serde::forward_to_deserialize_any;

use crate::raw::Key;

/// Keys that were once known, with their tables, and what says the same now.
const REPLACED: [(&[&str], &str); 1] =
    [(&["listeners", "sessions_max"], "limits = { simultaneous = NUMBER }, in the same table")];

/// What says the same as a key of an older version; `None` where it never was a key.
pub(crate) fn replaced(keys: &[Key]) -> Option<&'static str> {
    let names = keys.iter().filter_map(|key| match key {
        Key::Name(name) => Some(name.as_str()),
        Key::Index(_) => None,
    });
    let names: Vec<_> = names.collect();
    REPLACED.iter().find(|(old, _)| *old == names).map(|(_, now)| *now)
}

/// The known key of the same table that is written most like the last of `keys`; `None` where none is near.
pub(crate) fn nearest<T: DeserializeOwned>(keys: &[Key]) -> Option<&'static str> {
    let (Key::Name(written), table) = keys.split_last()? else { return None };
    let plain = |key: &str| key.to_lowercase().replace('-', "_");
    let written = plain(written);
    // One letter in five may be wrong, of a short key one: many keys end alike, such as those of timeouts.
    let distance_max = (written.chars().count() / 5).max(1);
    let known = known::<T>(table).iter();
    let distances = known.map(|key| (strsim::damerau_levenshtein(&plain(key), &written), *key));
    let (_, key) = distances.filter(|(distance, _)| *distance <= distance_max).min()?;
    Some(key)
}

fn known<T: DeserializeOwned>(table: &[Key]) -> &'static [&'static str] {
    let found = Cell::new(&[][..]);
    // It ends in an error where it has found the table, and where there is none.
    T::deserialize(Walk { path: table, found: &found }).ok();
    found.get()
}

/// Holds one thing only: the table at `path`. A type that reads it shows which keys that table has.
struct Walk<'a> {
    path: &'a [Key],
    found: &'a Cell<&'static [&'static str]>,
}

impl<'a> Walk<'a> {
    fn at(&self, path: &'a [Key]) -> Self {
        Self { path, found: self.found }
    }
}

impl<'de> Deserializer<'de> for Walk<'_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Error> {
        Err(Error::custom("neither a table nor a list"))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.path {
            [Key::Index(_), rest @ ..] => visitor.visit_seq(SeqDeserializer::new(once(self.at(rest)))),
            _ => Err(Error::custom("not an entry of a list")),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match self.path {
            [Key::Name(name), rest @ ..] => {
                visitor.visit_map(MapDeserializer::new(once((name.as_str(), self.at(rest)))))
            }
            [] => {
                self.found.set(fields);
                Err(Error::custom("found"))
            }
            _ => Err(Error::custom("not a key of a table")),
        }
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 char str string bytes byte_buf unit unit_struct tuple
        tuple_struct map enum identifier ignored_any
    }
}

impl<'de> IntoDeserializer<'de, Error> for Walk<'_> {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raw;

    fn name(name: &str) -> Key {
        Key::Name(name.to_owned())
    }

    #[test]
    fn a_key_of_an_older_version_is_known_in_its_table_alone() {
        let listener = |key: &str| [name("listeners"), Key::Index(1), name(key)];
        assert!(replaced(&listener("sessions_max")).is_some_and(|now| now.contains("simultaneous")));
        assert_eq!(replaced(&listener("address")), None);
        assert_eq!(replaced(&[name("sessions_max")]), None);
        assert_eq!(replaced(&[]), None);
    }

    #[test]
    fn only_near_keys_of_the_same_table_are_named() {
        let listener = |key: &str| nearest::<raw::Frontend>(&[name("listeners"), Key::Index(1), name(key)]);
        assert_eq!(listener("passive-ports"), Some("passive_ports"));
        assert_eq!(listener("Adress"), Some("address"));
        assert_eq!(listener("addresss"), Some("address"));
        assert_eq!(listener("speed"), None);
        // A key of another table.
        assert_eq!(listener("drain_timeout"), None);
        assert_eq!(nearest::<raw::Frontend>(&[name("listener")]), Some("listeners"));
        let rule = [name("global"), name("access"), Key::Index(0), name("alow")];
        assert_eq!(nearest::<raw::Frontend>(&rule), Some("allow"));
        assert_eq!(nearest::<raw::Agent>(&[name("store"), name("rot")]), Some("root"));
        // No table, or none that is known.
        assert_eq!(nearest::<raw::Agent>(&[name("version"), name("rot")]), None);
        assert_eq!(nearest::<raw::Agent>(&[name("nothing"), name("root")]), None);
        assert_eq!(nearest::<raw::Agent>(&[]), None);
    }
}

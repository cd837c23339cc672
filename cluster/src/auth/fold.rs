//! Names as directories compare them, so that all spellings of one account count together.
//!
//! Directories take `Anna`, ` anna`, `an\u{ad}na` and full-width letters for one name (RFC 4518, `caseIgnoreMatch`). A ban
//! that counts by what was typed would be passed by typing it in another way.
//!
//! Who calls it: the login desk, and `lockout` for what an operator types.
//! What it calls: the tables of stringprep, and Unicode's normalization.
//! What it never does: decide who somebody is. Admins are called what their directory calls them.

use stringprep::tables;
use unicode_normalization::UnicodeNormalization as _;

/// A name without what directories pass over: case, width, compatibility forms, control characters, repeated blanks and
/// those around it. `None` for one that no directory compares: private characters, or nothing left.
pub(super) fn fold(name: &str) -> Option<String> {
    let mapped = name.chars().filter_map(map);
    let folded = mapped.flat_map(tables::case_fold_for_nfkc).nfkc().flat_map(char::to_lowercase);
    let folded: String = folded.nfkc().collect();
    if folded.chars().any(is_prohibited) {
        return None;
    }
    let words: Vec<&str> = folded.split(' ').filter(|word| !word.is_empty()).collect();
    (!words.is_empty()).then(|| words.join(" "))
}

/// The step Map of RFC 4518 (section 2.2): blanks become one kind, what is not seen goes.
fn map(c: char) -> Option<char> {
    let is_space = matches!(c, '\t'..='\r' | '\u{85}' | '\u{2028}' | '\u{2029}')
        || (tables::non_ascii_space_character(c) && c != '\u{200b}');
    if is_space {
        return Some(' ');
    }
    let is_unseen = c.is_control()
        || tables::commonly_mapped_to_nothing(c)
        || tables::non_ascii_control_character(c)
        || tables::tagging_character(c)
        || matches!(c, '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{fffc}');
    (!is_unseen).then_some(c)
}

/// The step Prohibit of RFC 4518 (section 2.4), but for what was assigned after Unicode 3.2: today's directories know that.
fn is_prohibited(c: char) -> bool {
    c == char::REPLACEMENT_CHARACTER || tables::private_use(c) || tables::non_character_code_point(c)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_of_one_name_are_one() {
        for typed in [
            "bob",
            "Bob",
            " bob",
            "bob  ",
            "\tbob\u{a0}",
            "\u{3000}bob",
            "b\u{ad}ob",
            "bo\u{200b}b",
            "b\u{200d}ob",
            "\u{ff42}\u{ff4f}\u{ff42}",
            "\u{ff22}ob",
            "\u{1d41b}ob",
            "bo\u{feff}b",
            "\u{202e}bob",
            "bob\u{fe0f}",
            "b\0ob",
        ] {
            assert_eq!(fold(typed).as_deref(), Some("bob"), "{typed:?}");
        }
        for (one, other) in [
            ("Straße", "STRASSE"),
            ("anna  b", "anna b"),
            ("e\u{301}va", "\u{c9}VA"),
            ("\u{2126}", "\u{3c9}"),
            ("ﬁn", "FIN"),
            ("ΟΔΟΣ", "οδοσ"),
        ] {
            assert_eq!(fold(one), fold(other), "{one} {other}");
            assert!(fold(one).is_some());
        }
    }

    #[test]
    fn other_names_stay_others_and_folding_again_changes_nothing() {
        let names =
            ["bob", "bobo", "bo b", "b.ob", "bob@example.org", "example\\bob", "böb", "боб", "\u{10ffff}x"];
        for (at, one) in names.iter().enumerate() {
            let folded = fold(one);
            assert_eq!(folded.as_deref().and_then(fold), folded);
            assert!(names.iter().skip(at + 1).all(|other| folded != fold(other)), "{one}");
        }
    }

    #[test]
    fn a_name_that_no_directory_compares_has_no_form() {
        for name in ["", " ", "\u{200b}", "\0", "bob\u{e000}", "bob\u{fffd}", "\u{ffff}"] {
            assert_eq!(fold(name), None, "{name:?}");
        }
    }
}

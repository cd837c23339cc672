//! Wildcards of LIST and NLST: a pattern as an automaton that reads a name once.
//!
//! Who calls it: `listing`, and `commands::entry` for STAT.
//! What it calls: nothing.
//! What it never does: go back in a name. Its time is bounded by the product of the two lengths.

use std::collections::HashMap;
use std::ops::RangeInclusive;

use portolan_proto::path::COMPONENT_BYTES_MAX;

/// A character of a pattern or name: of UTF-8 the scalar value, of any other byte its value past all of these.
type Sign = u32;
/// The lowest [`Sign`] that is no character.
const BYTES: Sign = 0x11_0000;

/// States of a pattern at most: a sign makes one, and a pattern is no longer than a name.
const STATES_MAX: usize = COMPONENT_BYTES_MAX + 1;

/// Steps from set to set that are remembered at most, in about 400 KiB; then it begins anew.
const STEPS_MAX: usize = 4_096;
/// Work of a step that is remembered.
const LOOKUP_WORK: usize = 10;

/// A pattern, compiled.
#[derive(Debug, Clone)]
pub(super) struct Pattern {
    /// As it was written: a name of exactly these bytes fits, too.
    text: Vec<u8>,
    states: Vec<State>,
    /// Those that it begins in.
    first: Set,
    /// Of each state those that its sign leads to.
    following: Vec<Set>,
    /// Sets that names have led to, and which sign leads from one to another.
    sets: Vec<Set>,
    numbers: HashMap<Set, usize>,
    steps: HashMap<(usize, Sign), usize>,
    /// Work since it was asked for last.
    work: usize,
}

/// A set of states.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
struct Set([u64; STATES_MAX.div_ceil(64)]);

impl Set {
    /// False if it is there already.
    fn add(&mut self, state: usize) -> bool {
        let bit = 1 << (state % 64);
        let is_new = self.0[state / 64] & bit == 0;
        self.0[state / 64] |= bit;
        is_new
    }

    fn has(&self, state: usize) -> bool {
        self.0[state / 64] & (1 << (state % 64)) != 0
    }

    fn add_all(&mut self, other: &Set) {
        for (word, other) in self.0.iter_mut().zip(other.0) {
            *word |= other;
        }
    }
}

#[derive(Debug, Clone)]
enum State {
    One(Sign),
    /// `?`
    Any,
    /// `*`
    Many,
    Class {
        negated: bool,
        ranges: Vec<RangeInclusive<Sign>>,
    },
    /// To each of these.
    Fork(Vec<usize>),
    Jump(usize),
    End,
}

#[derive(Debug)]
enum Token {
    State(State),
    Open,
    Comma,
    Close,
}

/// A group that is not closed yet.
struct Group {
    fork: usize,
    alternatives: Vec<usize>,
    /// Jumps behind the group.
    exits: Vec<usize>,
}

/// True for a name that could be meant as a pattern.
pub(super) fn is_pattern(name: &[u8]) -> bool {
    name.iter().any(|byte| b"*?[{".contains(byte))
}

impl Pattern {
    /// Every name is a pattern: a bracket or brace without its end means itself, as in a shell. `None` for what is
    /// longer than a name.
    pub(super) fn new(pattern: &[u8]) -> Option<Self> {
        if pattern.len() > COMPONENT_BYTES_MAX {
            return None;
        }
        let mut tokens = tokens(&signs(pattern));
        make_lone_braces_plain(&mut tokens);
        let mut states = Vec::with_capacity(tokens.len() + 1);
        let mut groups: Vec<Group> = Vec::new();
        for token in tokens {
            match (token, groups.last_mut()) {
                (Token::State(state), _) => states.push(state),
                (Token::Open, _) => {
                    groups.push(Group {
                        fork: states.len(),
                        alternatives: vec![states.len() + 1],
                        exits: Vec::new(),
                    });
                    states.push(State::Fork(Vec::new()));
                }
                (Token::Comma, Some(group)) => {
                    group.exits.push(states.len());
                    group.alternatives.push(states.len() + 1);
                    states.push(State::Jump(0));
                }
                (Token::Close, Some(_)) => {
                    let Some(Group { fork, alternatives, exits }) = groups.pop() else { continue };
                    states[fork] = State::Fork(alternatives);
                    let behind = states.len();
                    for exit in exits {
                        states[exit] = State::Jump(behind);
                    }
                }
                (Token::Comma, None) => states.push(State::One(Sign::from(b','))),
                (Token::Close, None) => states.push(State::One(Sign::from(b'}'))),
            }
        }
        states.push(State::End);
        let following = (0..states.len()).map(|state| match &states[state] {
            State::Many => entered(&states, state),
            State::One(_) | State::Any | State::Class { .. } => entered(&states, state + 1),
            State::Fork(_) | State::Jump(_) | State::End => Set::default(),
        });
        let following = following.collect();
        Some(Self {
            text: pattern.to_vec(),
            first: entered(&states, 0),
            following,
            states,
            sets: Vec::new(),
            numbers: HashMap::new(),
            steps: HashMap::new(),
            work: 0,
        })
    }

    /// Work since the last call, in steps of some nanoseconds.
    pub(super) fn take_work(&mut self) -> usize {
        std::mem::take(&mut self.work)
    }

    /// True for a name that the pattern stands for, and for the one that it is itself.
    pub(super) fn fits(&mut self, name: &[u8]) -> bool {
        name == self.text || self.matches(name)
    }

    fn matches(&mut self, name: &[u8]) -> bool {
        let mut at = self.number(self.first);
        for sign in signs(name) {
            self.work += LOOKUP_WORK;
            at = match self.steps.get(&(at, sign)) {
                Some(next) => *next,
                None => self.step(at, sign),
            };
        }
        self.sets[at].has(self.states.len() - 1)
    }

    /// The number of a set.
    fn number(&mut self, set: Set) -> usize {
        *self.numbers.entry(set).or_insert_with(|| {
            self.sets.push(set);
            self.sets.len() - 1
        })
    }

    /// Works out where a sign leads, and remembers it.
    fn step(&mut self, at: usize, sign: Sign) -> usize {
        self.work += self.states.len();
        let mut current = self.sets[at];
        let mut next = Set::default();
        for (index, word) in current.0.iter_mut().enumerate() {
            while *word != 0 {
                let state = index * 64 + word.trailing_zeros() as usize;
                *word &= *word - 1;
                let reads = match &self.states[state] {
                    State::One(expected) => *expected == sign,
                    State::Any | State::Many => true,
                    State::Class { negated, ranges } => {
                        self.work += ranges.len();
                        ranges.iter().any(|range| range.contains(&sign)) != *negated
                    }
                    State::Fork(_) | State::Jump(_) | State::End => false,
                };
                if reads {
                    next.add_all(&self.following[state]);
                }
            }
        }
        if self.steps.len() >= STEPS_MAX {
            self.sets.clear();
            self.numbers.clear();
            self.steps.clear();
            return self.number(next);
        }
        let next = self.number(next);
        self.steps.insert((at, sign), next);
        next
    }
}

/// A state, with those that follow from it without a sign.
fn entered(states: &[State], state: usize) -> Set {
    let mut set = Set::default();
    let mut entering = vec![state];
    while let Some(state) = entering.pop() {
        if !set.add(state) {
            continue;
        }
        match &states[state] {
            State::Fork(alternatives) => entering.extend(alternatives),
            State::Jump(to) => entering.push(*to),
            State::Many => entering.push(state + 1),
            State::One(_) | State::Any | State::Class { .. } | State::End => {}
        }
    }
    set
}

fn signs(text: &[u8]) -> Vec<Sign> {
    let mut signs = Vec::with_capacity(text.len());
    for chunk in text.utf8_chunks() {
        signs.extend(chunk.valid().chars().map(Sign::from));
        signs.extend(chunk.invalid().iter().map(|byte| BYTES + Sign::from(*byte)));
    }
    signs
}

fn is(sign: Sign, byte: u8) -> bool {
    sign == Sign::from(byte)
}

fn tokens(pattern: &[Sign]) -> Vec<Token> {
    let mut tokens = Vec::with_capacity(pattern.len());
    let mut rest = pattern;
    while let Some((sign, after)) = rest.split_first() {
        rest = after;
        let token = match char::from_u32(*sign) {
            Some('*') => Token::State(State::Many),
            Some('?') => Token::State(State::Any),
            Some('{') => Token::Open,
            Some(',') => Token::Comma,
            Some('}') => Token::Close,
            Some('[') => match class(rest) {
                Some((class, after)) => {
                    rest = after;
                    Token::State(class)
                }
                None => Token::State(State::One(*sign)),
            },
            Some('\\') => match rest.split_first() {
                Some((meant, after)) => {
                    rest = after;
                    Token::State(State::One(*meant))
                }
                None => Token::State(State::One(*sign)),
            },
            Some(_) | None => Token::State(State::One(*sign)),
        };
        tokens.push(token);
    }
    tokens
}

/// What stands in brackets, and what follows it; `None` without the closing one.
fn class(text: &[Sign]) -> Option<(State, &[Sign])> {
    let negated = text.first().is_some_and(|sign| is(*sign, b'!') || is(*sign, b'^'));
    let mut rest = if negated { &text[1..] } else { text };
    let mut ranges = Vec::new();
    loop {
        let (sign, after) = rest.split_first()?;
        // The first one means itself: a class has at least one sign.
        if is(*sign, b']') && !ranges.is_empty() {
            return Some((State::Class { negated, ranges }, after));
        }
        let (first, after) = class_sign(rest)?;
        rest = after;
        let mut last = first;
        if let [dash, end, ..] = rest
            && is(*dash, b'-')
            && !is(*end, b']')
        {
            (last, rest) = class_sign(&rest[1..])?;
        }
        ranges.push(first..=last);
    }
}

/// A sign of a class, which a backslash may stand before.
fn class_sign(text: &[Sign]) -> Option<(Sign, &[Sign])> {
    let (sign, rest) = text.split_first()?;
    if !is(*sign, b'\\') {
        return Some((*sign, rest));
    }
    rest.split_first().map(|(sign, rest)| (*sign, rest))
}

/// An opening brace without a closing one means itself. The others outside of groups are seen when states are made.
fn make_lone_braces_plain(tokens: &mut [Token]) {
    let mut open = Vec::new();
    for (at, token) in tokens.iter().enumerate() {
        match token {
            Token::Open => open.push(at),
            Token::Close => {
                open.pop();
            }
            Token::State(_) | Token::Comma => {}
        }
    }
    for at in open {
        tokens[at] = Token::State(State::One(Sign::from(b'{')));
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    fn matches(pattern: impl AsRef<[u8]>, name: impl AsRef<[u8]>) -> bool {
        Pattern::new(pattern.as_ref()).unwrap().matches(name.as_ref())
    }

    #[test]
    fn what_fits_and_what_does_not() {
        for (pattern, fitting, others) in [
            ("*", &["", "a", ".dot", "a b"][..], &[][..]),
            ("a*", &["a", "ab", "a.b"], &["", "ba"]),
            ("*.eml", &[".eml", "1.eml", "1.eml.eml"], &["1.em", "1.eml "]),
            ("a*b*c", &["abc", "aXbYc", "abbcc"], &["acb", "ab"]),
            ("?", &["a", "é", "受"], &["", "ab"]),
            ("[a-c]x", &["ax", "bx", "cx"], &["dx", "x", "ax "]),
            ("[!a-c]x", &["dx", "éx"], &["ax", "x"]),
            ("[^a]", &["b"], &["a"]),
            ("[ä-ü]", &["ö"], &["o"]),
            ("[]x]", &["]", "x"], &["a"]),
            ("[!]x]", &["a"], &["]", "x"]),
            ("[a-]", &["a", "-"], &["b"]),
            ("[\\]a]", &["]", "a"], &["\\"]),
            ("[b-a]", &[], &["a", "b"]),
            ("{a,bc}d", &["ad", "bcd"], &["abcd", "d"]),
            ("x{,y}z", &["xz", "xyz"], &["xyyz"]),
            ("{a,{b,c*}d}", &["a", "bd", "cd", "cccd"], &["b", "ad"]),
            ("{[,],x}", &["x", ","], &["", "[,]"]),
            ("{}", &[""], &["{}"]),
            ("a,b", &["a,b"], &["a"]),
            ("a}b", &["a}b"], &["ab"]),
            ("{a,b", &["{a,b"], &["a"]),
            ("{a,{b,c}", &["{a,b", "{a,c"], &["a", "b"]),
            ("[ab", &["[ab"], &["a"]),
            ("\\*\\?", &["*?"], &["ab"]),
            ("a\\", &["a\\"], &["a"]),
            ("!a", &["!a"], &["b"]),
            ("**", &["", "abc"], &[]),
        ] {
            for name in fitting {
                assert!(matches(pattern, name), "{pattern:?} fits {name:?}");
            }
            for name in others {
                assert!(!matches(pattern, name), "{pattern:?} does not fit {name:?}");
            }
        }
    }

    #[test]
    fn names_and_patterns_are_bytes() {
        assert!(matches(b"a?b", b"a\xffb"));
        assert!(matches(b"\xff*", b"\xff\xfe"));
        assert!(!matches(b"\xff", b"\xfe"));
        assert!(matches(b"[\xf0-\xff]", b"\xf8"));
        assert!(!matches(b"[!\xff]", b"\xff"));
    }

    #[test]
    fn one_pattern_is_matched_with_many_names() {
        let mut pattern = Pattern::new(b"{*a,b?}").unwrap();
        let fits: Vec<bool> =
            ["a", "b", "ba", "bb", "c", "", "xa"].map(|name| pattern.matches(name.as_bytes())).to_vec();
        assert_eq!(fits, [true, false, true, true, false, false, true]);
    }

    #[test]
    fn what_is_remembered_has_a_limit_and_changes_no_answer() {
        let mut pattern = Pattern::new(b"*a????????????x").unwrap();
        for number in 0_u32..20_000 {
            // Every sequence of a and b leads to a set of its own.
            let name: String = (0..14).map(|bit| if number >> bit & 1 == 1 { 'a' } else { 'b' }).collect();
            let name = name + "x";
            let fits = name.as_bytes()[name.len() - 14] == b'a';
            assert_eq!(pattern.matches(name.as_bytes()), fits, "{name}");
            assert!(pattern.steps.len() <= STEPS_MAX && pattern.sets.len() <= STEPS_MAX + 2);
        }
    }

    #[test]
    fn no_pattern_of_255_bytes_takes_long() {
        let name = [b'a'; 255];
        assert!(Pattern::new(&[b'*'; 256]).is_none());
        let nested = format!("{}x{}", "{*a,".repeat(50), "}".repeat(50));
        for pattern in [
            "{*a,*a,*a}".repeat(25) + "b",
            "*a".repeat(127),
            "*?".repeat(127),
            "{,a}".repeat(63),
            "{a,aa,*}".repeat(31) + "b",
            "[!b]*".repeat(51),
            "{".repeat(127) + &"}".repeat(127),
            nested,
        ] {
            let mut compiled = Pattern::new(pattern.as_bytes()).unwrap();
            let started = Instant::now();
            for _ in 0..10 {
                compiled.matches(&name);
            }
            assert!(compiled.take_work() <= 256 * 256 * 2, "{pattern}");
            assert!(started.elapsed() < Duration::from_millis(500), "{pattern}: {:?}", started.elapsed());
        }
    }
}

//! The contracts can still be spoken with the programs of the last release: `released/` has them as they were then.
//!
//! At a release, `cp -r proto/portolan released/` in this crate's folder. In between only what is additive passes: a field,
//! value or method of the release keeps its number, name, type and presence; what is removed stays reserved.

#![allow(clippy::unwrap_used)] // helpers of tests, which clippy does not know as such

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorSet, MethodDescriptorProto,
    field_descriptor_proto,
};

const CONTRACTS: [&str; 2] = ["portolan/agent/v1/agent.proto", "portolan/frontend/v1/control.proto"];

/// All that stands in the files of a contract, by its full name.
#[derive(Default)]
struct Contract {
    messages: BTreeMap<String, DescriptorProto>,
    enums: BTreeMap<String, EnumDescriptorProto>,
    methods: BTreeMap<String, MethodDescriptorProto>,
}

impl Contract {
    fn of(files: FileDescriptorSet) -> Self {
        let mut contract = Self::default();
        for file in files.file {
            let package = file.package().to_owned();
            for message in file.message_type {
                contract.add(&package, message);
            }
            for values in file.enum_type {
                contract.enums.insert(format!("{package}.{}", values.name()), values);
            }
            for service in file.service {
                for method in &service.method {
                    let name = format!("{package}.{}/{}", service.name(), method.name());
                    contract.methods.insert(name, method.clone());
                }
            }
        }
        contract
    }

    fn add(&mut self, within: &str, message: DescriptorProto) {
        let name = format!("{within}.{}", message.name());
        for nested in &message.nested_type {
            self.add(&name, nested.clone());
        }
        for values in &message.enum_type {
            self.enums.insert(format!("{name}.{}", values.name()), values.clone());
        }
        self.messages.insert(name, message);
    }
}

/// What a program that knows `old` alone cannot live with.
fn broken(old: &Contract, new: &Contract) -> Vec<String> {
    let mut broken = Vec::new();
    for (name, message) in &old.messages {
        match new.messages.get(name) {
            Some(now) => {
                broken.extend(message_broken(message, now).iter().map(|why| format!("{name}: {why}")))
            }
            None => broken.push(format!("{name} is gone")),
        }
    }
    for (name, values) in &old.enums {
        match new.enums.get(name) {
            Some(now) => broken.extend(enum_broken(values, now).iter().map(|why| format!("{name}: {why}"))),
            None => broken.push(format!("{name} is gone")),
        }
    }
    for (name, method) in &old.methods {
        let shape = |method: &MethodDescriptorProto| {
            let types = (method.input_type().to_owned(), method.output_type().to_owned());
            (types, method.client_streaming(), method.server_streaming())
        };
        match new.methods.get(name) {
            Some(now) if shape(now) == shape(method) => {}
            Some(_) => broken.push(format!("{name} takes or returns something else")),
            None => broken.push(format!("{name} is gone")),
        }
    }
    broken
}

fn message_broken(old: &DescriptorProto, new: &DescriptorProto) -> Vec<String> {
    let mut broken = Vec::new();
    let is_reserved =
        |number: i32| new.reserved_range.iter().any(|range| (range.start()..range.end()).contains(&number));
    for field in &old.field {
        let (number, name) = (field.number(), field.name());
        match new.field.iter().find(|now| now.number() == number) {
            Some(now) => {
                let (before, now) = (shown(field, old), shown(now, new));
                if before != now {
                    broken.push(format!("{number} was \"{before}\", is \"{now}\""));
                }
            }
            None if is_reserved(number) && new.reserved_name.iter().any(|reserved| reserved == name) => {}
            None => broken.push(format!("{name} = {number} is gone, and number or name are not reserved")),
        }
    }
    let numbers = old.reserved_range.iter().flat_map(|range| range.start()..range.end());
    broken.extend(numbers.filter(|number| !is_reserved(*number)).map(|number| not_reserved(&number)));
    let names = old.reserved_name.iter().filter(|name| !new.reserved_name.contains(name));
    broken.extend(names.map(not_reserved));
    broken
}

fn enum_broken(old: &EnumDescriptorProto, new: &EnumDescriptorProto) -> Vec<String> {
    let mut broken = Vec::new();
    // The end of a range of values is part of it, unlike that of fields.
    let is_reserved =
        |number: i32| new.reserved_range.iter().any(|range| (range.start()..=range.end()).contains(&number));
    for value in &old.value {
        let (number, name) = (value.number(), value.name());
        match new.value.iter().find(|now| now.number() == number) {
            Some(now) if now.name() == name => {}
            Some(now) => broken.push(format!("{number} was {name}, is {}", now.name())),
            None if is_reserved(number) && new.reserved_name.iter().any(|reserved| reserved == name) => {}
            None => broken.push(format!("{name} = {number} is gone, and number or name are not reserved")),
        }
    }
    let numbers = old.reserved_range.iter().flat_map(|range| range.start()..=range.end());
    broken.extend(numbers.filter(|number| !is_reserved(*number)).map(|number| not_reserved(&number)));
    let names = old.reserved_name.iter().filter(|name| !new.reserved_name.contains(name));
    broken.extend(names.map(not_reserved));
    broken
}

fn not_reserved(what: &impl std::fmt::Display) -> String {
    format!("{what} was reserved and is not any more")
}

/// All of a field that counts on the wire or for its meaning, as the file has it.
fn shown(field: &FieldDescriptorProto, message: &DescriptorProto) -> String {
    let presence = match (field.label(), field.proto3_optional()) {
        (field_descriptor_proto::Label::Repeated, _) => "repeated ".to_owned(),
        (_, true) => "optional ".to_owned(),
        (_, false) => {
            match field.oneof_index.and_then(|index| message.oneof_decl.get(usize::try_from(index).ok()?)) {
                Some(oneof) => format!("oneof {}: ", oneof.name()),
                None => String::new(),
            }
        }
    };
    let kind = match field.type_name() {
        "" => field.r#type().as_str_name().trim_start_matches("TYPE_").to_lowercase(),
        name => name.trim_start_matches('.').to_owned(),
    };
    format!("{presence}{kind} {}", field.name())
}

fn compiled(folder: &Path, files: &[&str]) -> Contract {
    Contract::of(protox::compile(files, [folder]).unwrap())
}

#[test]
fn programs_of_the_last_release_understand_the_contracts_of_this_one() {
    let crate_folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let old = compiled(&crate_folder.join("released"), &CONTRACTS);
    let new = compiled(&crate_folder.join("proto"), &CONTRACTS);
    assert!(old.messages.len() > 60 && old.methods.len() > 20 && old.enums.len() > 3, "all of it was read");
    let broken = broken(&old, &new);
    assert!(broken.is_empty(), "programs of the last release would misunderstand:\n{}", broken.join("\n"));
}

/// Compares a small contract with a changed one.
fn changed(from: &str, to: &str) -> Vec<String> {
    const SMALL: &str = "message M {
            reserved 9, 20 to 22;
            reserved \"gone\";
            string name = 1;
            optional bytes domain = 2;
            repeated uint64 sizes = 3;
            oneof who { string session = 4; M nested = 5; }
            E kind = 6;
        }
        enum E { reserved 7; ZERO = 0; ONE = 1; }
        service S { rpc Do(M) returns (stream M); }";
    assert!(SMALL.contains(from), "{from}");
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        fs::write(folder.path().join(name), format!("syntax = \"proto3\";\npackage p;\n{text}")).unwrap();
    };
    write("old.proto", SMALL);
    write("new.proto", &SMALL.replacen(from, to, 1));
    broken(&compiled(folder.path(), &["old.proto"]), &compiled(folder.path(), &["new.proto"]))
}

#[test]
fn what_is_additive_passes() {
    for (from, to) in [
        ("E kind = 6;", "E kind = 6; string more = 7; optional bool right = 8;"),
        ("M nested = 5;", "M nested = 5; string third = 30;"),
        ("ONE = 1;", "ONE = 1; TWO = 2;"),
        ("rpc Do", "rpc Also(M) returns (M); rpc Do"),
        ("string name = 1;", "reserved 1; reserved \"name\";"),
        ("reserved 9, 20 to 22;", "reserved 9 to 11, 20 to 25;"),
        ("ZERO = 0; ONE = 1;", "reserved 1; reserved \"ONE\"; ZERO = 0;"),
        ("message M", "message N {} message M"),
    ] {
        assert_eq!(changed(from, to), Vec::<String>::new(), "{to}");
    }
}

#[test]
fn what_an_older_program_would_misunderstand_is_found() {
    for (from, to, found) in [
        ("string name = 1;", "bytes name = 1;", "p.M: 1 was \"string name\", is \"bytes name\""),
        ("string name = 1;", "string title = 1;", "p.M: 1 was \"string name\", is \"string title\""),
        ("string name = 1;", "optional string name = 1;", "is \"optional string name\""),
        ("string name = 1;", "string name = 10;", "p.M: name = 1 is gone"),
        ("string name = 1;", "", "p.M: name = 1 is gone"),
        ("string name = 1;", "reserved 1;", "p.M: name = 1 is gone"),
        ("repeated uint64 sizes", "uint64 sizes", "3 was \"repeated uint64 sizes\", is \"uint64 sizes\""),
        (
            "oneof who { string session = 4; M nested = 5; }",
            "string session = 4; M nested = 5;",
            "oneof who: string session",
        ),
        ("E kind = 6;", "int32 kind = 6;", "6 was \"p.E kind\", is \"int32 kind\""),
        ("reserved 9, 20 to 22;", "reserved 20 to 22;", "p.M: 9 was reserved"),
        ("reserved 9, 20 to 22;", "reserved 9, 20, 22;", "p.M: 21 was reserved"),
        ("reserved \"gone\";", "bytes gone = 40;", "p.M: gone was reserved"),
        ("ONE = 1;", "ONE = 2;", "p.E: ONE = 1 is gone"),
        ("ONE = 1;", "ANOTHER = 1;", "p.E: 1 was ONE, is ANOTHER"),
        ("reserved 7; ZERO = 0;", "ZERO = 0; SEVEN = 7;", "p.E: 7 was reserved"),
        ("returns (stream M)", "returns (M)", "p.S/Do takes or returns something else"),
        ("rpc Do", "rpc Done", "p.S/Do is gone"),
    ] {
        let told = changed(from, to);
        assert!(told.iter().any(|told| told.contains(found)), "{to}: {told:?}");
    }
}

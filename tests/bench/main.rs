//! Measures Portolan beside its peers. Being written.

fn main() {}

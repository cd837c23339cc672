//! Compiles the contracts with protox (pure Rust), so that no machine needs protoc.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["proto/portolan/agent/v1/agent.proto", "proto/portolan/frontend/v1/control.proto"];
    for file in files {
        println!("cargo:rerun-if-changed={file}");
    }
    let descriptors = protox::compile(files, ["proto"])?;
    // `bytes` fields become `bytes::Bytes`: a chunk is a view of the receive buffer, not a copy.
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    Ok(())
}

//! Compiles `agent.proto` with protox (pure Rust), so that no machine needs protoc.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let file = "proto/portolan/agent/v1/agent.proto";
    println!("cargo:rerun-if-changed={file}");
    let descriptors = protox::compile([file], ["proto"])?;
    // `bytes` fields become `bytes::Bytes`: a chunk is a view of the receive buffer, not a copy.
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    Ok(())
}

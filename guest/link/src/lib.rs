//! Makes a package's binaries bootable guests. A build script calls [`guest`]; that is all a guest
//! author has to do about linking.

/// Links the calling package's binaries as static PVH images at 1 MiB, without any start-up code or
/// library of the host's. To be called from a build script.
pub fn guest() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/link.ld");
    println!("cargo::rerun-if-changed={script}");
    let script = format!("-Wl,-T,{script}");
    for argument in [
        "-nostartfiles",
        "-nostdlib",
        "-static",
        "-no-pie",
        // The image depends on its sources only, and its sections lie page by page as the script says.
        "-Wl,--build-id=none",
        "-Wl,-z,max-page-size=4096",
        "-Wl,-z,norelro",
        &script,
    ] {
        println!("cargo::rustc-link-arg-bins={argument}");
    }
}

//! What `scripts/xcframework` asks of Xcode, told by tools that write down how they were called: the
//! script itself only runs on a Mac.
#![cfg(unix)]

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Output},
};
use tempfile::TempDir;

/// Calls of `xcrun` as MLX's build makes them, and what cargo leaves behind.
const CARGO: &str = r#"
log "cargo $* [${MACOSX_DEPLOYMENT_TARGET-} ${IPHONEOS_DEPLOYMENT_TARGET-}]"
[ -z "${CMAKE_TOOLCHAIN_FILE-}" ] || log "cmake $(tr '\n' ' ' <"$CMAKE_TOOLCHAIN_FILE")"
target=$(sed 's/.*--target \([^ ]*\).*/\1/' <<<"$*")
library=target/xcframework/cargo/$target/release
mkdir -p "$library"
touch "$library/libmynah_bindings.a"
if [ "$target" != aarch64-apple-ios-sim ]; then
  xcrun -sdk macosx metal -x metal -mmacosx-version-min=17.0 -c a.metal -o a.air
  xcrun --show-sdk-platform-path && log "the compiler runtime of macOS would be linked"
  echo "$target" >"$MLX_RS_METAL_PATH/mlx.metallib"
fi
echo "note: native-static-libs: -lc++ -framework Metal" >&2
"#;

const XCRUN: &str = r#"
log "xcrun $*"
output=$(sed -n 's/.* -dynamiclib -o \([^ ]*\).*/\1/p' <<<"$*")
[ -z "$output" ] || echo code >"$output"
"#;

struct Mac {
    root: TempDir,
}

impl Mac {
    fn new() -> Mac {
        let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let mac = Mac { root: tempfile::tempdir().unwrap() };
        for file in
            ["xcframework", "apple/xcrun", "apple/Info.plist", "apple/PrivacyInfo.xcprivacy"]
        {
            let copy = mac.path("scripts").join(file);
            fs::create_dir_all(copy.parent().unwrap()).unwrap();
            fs::copy(repository.join("scripts").join(file), copy).unwrap();
        }
        fs::write(mac.path("Cargo.toml"), "version = \"1.2.3\"\n").unwrap();
        let header = "mkdir -p apple/Sources/MynahFFI && touch apple/Sources/MynahFFI/MynahFFI.h";
        mac.tool("scripts/bindings", header);
        mac.tool("home/.cargo/bin/cargo", CARGO);
        mac.tool("home/.cargo/bin/xcrun", XCRUN);
        mac.tool("home/.cargo/bin/rustup", "log \"rustup $*\"");
        mac.tool("home/.cargo/bin/xcodebuild", "log \"xcodebuild $*\"");
        mac.tool("home/.cargo/bin/ditto", "log \"ditto $*\"; printf archive >\"${!#}\"");
        mac.tool("home/.cargo/bin/shasum", "shift 2; sha256sum \"$@\"");
        mac
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn tool(&self, name: &str, body: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let log = self.path("log");
        let log = format!("log() {{ echo \"$@\" >>'{}'; }}", log.display());
        fs::write(&path, format!("#!/usr/bin/env bash\nset -euo pipefail\n{log}\n{body}\n"))
            .unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn build(&self) -> Output {
        let mut command = Command::new(self.path("scripts/xcframework"));
        let output = command.env("HOME", self.path("home")).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output
    }

    /// What the tools were asked, one call a line, with paths from the repository.
    fn calls(&self) -> Vec<String> {
        let root = format!("{}/", self.root.path().canonicalize().unwrap().display());
        let log = fs::read_to_string(self.path("log")).unwrap();
        log.replace(&root, "")
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect()
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.path("target/xcframework").join(path)).unwrap()
    }
}

fn assert_called(calls: &[String], call: &str) {
    assert!(calls.iter().any(|made| made == call), "{call}\nis not among\n{}", calls.join("\n"));
}

#[test]
fn each_slice_is_built_and_linked_for_its_system() {
    let mac = Mac::new();
    let output = mac.build();
    let calls = mac.calls();
    for (target, sdk, clang, place, deployment) in [
        (
            "aarch64-apple-darwin",
            "macosx",
            "arm64-apple-macosx14.0",
            "MynahFFI.framework/Versions/A",
            "[14.0 ]",
        ),
        ("aarch64-apple-ios", "iphoneos", "arm64-apple-ios17.0", "MynahFFI.framework", "[ 17.0]"),
        (
            "aarch64-apple-ios-sim",
            "iphonesimulator",
            "arm64-apple-ios17.0-simulator",
            "MynahFFI.framework",
            "[ 17.0]",
        ),
    ] {
        assert_called(&calls, &format!("rustup target add {target}"));
        assert_called(
            &calls,
            &format!(
                "cargo rustc --release --package mynah-bindings --lib --crate-type staticlib --target {target} \
             --target-dir target/xcframework/cargo -- --print native-static-libs {deployment}"
            ),
        );
        assert_called(
            &calls,
            &format!(
                "xcrun -sdk {sdk} clang -target {clang} -dynamiclib -o target/xcframework/{target}/{place}/MynahFFI \
             -Wl,-force_load,target/xcframework/cargo/{target}/release/libmynah_bindings.a -lc++ -framework Metal \
             -install_name @rpath/{place}/MynahFFI -Wl,-dead_strip -Wl,-x \
             -Wl,-exported_symbol,_ffi_mynah_* -Wl,-exported_symbol,_uniffi_mynah_*"
            ),
        );
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(said.contains(&format!("{target}: ")), "no size of {target} in {said}");
    }
    assert_called(
        &calls,
        "xcodebuild -create-xcframework \
        -framework target/xcframework/aarch64-apple-darwin/MynahFFI.framework \
        -framework target/xcframework/aarch64-apple-ios/MynahFFI.framework \
        -framework target/xcframework/aarch64-apple-ios-sim/MynahFFI.framework \
        -output apple/MynahFFI.xcframework",
    );
}

#[test]
fn mlx_is_built_with_the_sdk_of_the_slice() {
    let mac = Mac::new();
    mac.build();
    let calls = mac.calls();
    let metal: Vec<_> = calls.iter().filter(|call| call.contains(" metal ")).collect();
    assert_eq!(
        metal,
        [
            "xcrun -sdk macosx metal -x metal -mmacosx-version-min=17.0 -c a.metal -o a.air",
            "xcrun -sdk iphoneos metal -mios-version-min=17.0 -x metal -c a.metal -o a.air",
        ]
    );
    assert!(!calls.iter().any(|call| call.contains("compiler runtime")));
    let systems: Vec<_> = calls.iter().filter_map(|call| call.strip_prefix("cmake ")).collect();
    let system = |sdk| {
        format!(
            "set(CMAKE_SYSTEM_NAME iOS) set(CMAKE_SYSTEM_PROCESSOR arm64) set(CMAKE_OSX_ARCHITECTURES arm64) \
             set(CMAKE_OSX_SYSROOT {sdk}) set(CMAKE_OSX_DEPLOYMENT_TARGET 17.0)"
        )
    };
    assert_eq!(systems, [system("iphoneos"), system("iphonesimulator")]);
}

#[test]
fn a_framework_holds_what_its_users_and_the_store_look_for() {
    let mac = Mac::new();
    mac.build();
    // A second build finds MLX built and its kernels where they were.
    let again = CARGO.replace("echo \"$target\" >\"$MLX_RS_METAL_PATH/mlx.metallib\"", ":");
    mac.tool("home/.cargo/bin/cargo", &again);
    let output = mac.build();
    for (target, resources, system) in [
        (
            "aarch64-apple-darwin",
            "Resources",
            "<key>LSMinimumSystemVersion</key>\n  <string>14.0</string>",
        ),
        ("aarch64-apple-ios", ".", "<key>MinimumOSVersion</key>\n  <string>17.0</string>"),
        ("aarch64-apple-ios-sim", ".", "<key>MinimumOSVersion</key>\n  <string>17.0</string>"),
    ] {
        let file = |name: &str| format!("{target}/MynahFFI.framework/{name}");
        assert_eq!(mac.read(&file("MynahFFI")), "code\n");
        assert!(
            mac.read(&file("Modules/module.modulemap")).starts_with("framework module MynahFFI {")
        );
        assert_eq!(mac.read(&file("Headers/MynahFFI.h")), "");
        assert!(
            mac.read(&file(&format!("{resources}/PrivacyInfo.xcprivacy")))
                .contains("NSPrivacyTracking")
        );
        let information = mac.read(&file(&format!("{resources}/Info.plist")));
        assert!(
            information.contains(system) && information.contains("<string>1.2.3</string>"),
            "{information}"
        );
        assert!(!information.contains('@'), "{information}");
        let kernels =
            mac.path("target/xcframework").join(file(&format!("{resources}/mlx.metallib")));
        // The simulator has no Metal that MLX can use.
        assert_eq!(kernels.exists(), target != "aarch64-apple-ios-sim");
    }
    let versions =
        mac.path("target/xcframework/aarch64-apple-darwin/MynahFFI.framework/Versions/Current");
    assert_eq!(fs::read_link(versions).unwrap(), Path::new("A"));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let archive = "0eb3e36bfb24dcd9bb1d1bece1531216b59539a8fde17ee80224af0653c92aa3";
    assert!(said.ends_with(&format!("checksum {archive}\n")), "{said}");
}

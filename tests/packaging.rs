//! What `scripts/xcframework` and `scripts/setup` ask of Xcode, told by tools that write down how they
//! were called: the scripts themselves only run on a Mac. As there, the temporary directory is behind a
//! link, and the tools are as unhelpful as Apple's and cargo's can be.
#![cfg(unix)]

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Command, Output},
};
use tempfile::TempDir;

/// A call of `xcrun` as the build script of mlx-sys makes it, and what cargo leaves behind. Its notes are
/// coloured unless that is forbidden.
const CARGO: &str = r#"
log "cargo $* [${MACOSX_DEPLOYMENT_TARGET-} ${IPHONEOS_DEPLOYMENT_TARGET-}]"
log "cmake $(tr '\n' ' ' <"$CMAKE_TOOLCHAIN_FILE")"
target=$(sed 's/.*--target \([^ ]*\).*/\1/' <<<"$*")
library=target/xcframework/cargo/$target/release
mkdir -p "$library"
touch "$library/libmynah_bindings.a"
log "flags of $target: $BINDGEN_EXTRA_CLANG_ARGS, $CARGO_PROFILE_RELEASE_DEBUG, ${CARGO_ENCODED_RUSTFLAGS//$'\x1f'/ }"
if [ "$target" != aarch64-apple-ios-sim ]; then
  xcrun --show-sdk-platform-path && log "the compiler runtime of macOS would be linked"
  echo "$target" >"$MLX_RS_METAL_PATH/mlx.metallib"
fi
note=$'\e[1m\e[92mnote\e[0m\e[1m'
[[ "$*" != *"--color never"* ]] || note=note
echo "$note: native-static-libs: -lc++ -framework Metal" >&2
"#;

const XCRUN: &str = r#"
log "xcrun $*"
[[ "$*" != *--show-sdk-path* ]] || echo "/SDKs/$2"
output=$(sed -n 's/.* -dynamiclib -o \([^ ]*\).*/\1/p' <<<"$*")
[ -z "$output" ] || echo code >"$output"
"#;

/// Packs the lines that the patch changes, in place of MLX's sources.
const CURL: &str = r#"
log "curl ${!#}"
mkdir -p release/mlx
awk '/^--- a\// { file = "release/mlx/" substr($2, 3); system("mkdir -p $(dirname " file ")"); next }
  file != "" && /^[ -]/ { print substr($0, 2) >file }' scripts/apple/mlx.patch
while [ "$1" != --output ]; do shift; done
tar -czf "$2" -C release mlx
"#;

struct Mac {
    /// Holds the folder `real` and the link `repository` to it.
    root: TempDir,
}

impl Mac {
    fn new() -> Mac {
        let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let mac = Mac { root: tempfile::tempdir().unwrap() };
        fs::create_dir(mac.root.path().join("real")).unwrap();
        symlink("real", mac.root.path().join("repository")).unwrap();
        for file in [
            "setup",
            "xcframework",
            "apple/Info.plist",
            "apple/PrivacyInfo.xcprivacy",
            "apple/link",
            "apple/mlx.patch",
            "apple/xcrun",
        ] {
            let copy = mac.path("scripts").join(file);
            fs::create_dir_all(copy.parent().unwrap()).unwrap();
            fs::copy(repository.join("scripts").join(file), copy).unwrap();
        }
        fs::write(mac.path("Cargo.toml"), "version = \"1.2.3\"\n").unwrap();
        let header = "mkdir -p apple/Sources/MynahFFI && touch apple/Sources/MynahFFI/MynahFFI.h";
        mac.tool("scripts/bindings", header);
        for (name, body) in [
            ("cargo", CARGO),
            ("xcrun", XCRUN),
            ("curl", CURL),
            ("rustup", "log \"rustup $*\""),
            ("xcodebuild", "log \"xcodebuild $*\""),
            ("codesign", "log \"codesign $*\""),
            ("ditto", "log \"ditto $*\"; printf archive >\"${!#}\""),
            (
                "shasum",
                "shift 2; if [ \"$1\" = -c ]; then cat >/dev/null; else sha256sum \"$@\"; fi",
            ),
            ("uname", "echo Darwin"),
            ("cmake", ""),
        ] {
            mac.tool(&format!("home/.cargo/bin/{name}"), body);
        }
        mac
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join("repository").join(name)
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

    fn run(&self, script: &str, environment: &[(&str, &str)]) -> Output {
        let mut command = Command::new(self.path(script));
        command.env("HOME", self.path("home")).env_remove("MYNAH_SIGNING_IDENTITY");
        command.envs(environment.iter().copied()).output().unwrap()
    }

    fn build(&self) -> Output {
        let output = self.run("scripts/xcframework", &[]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output
    }

    /// What a script says when it fails.
    fn refuse(&self, script: &str) -> String {
        let output = self.run(script, &[]);
        assert!(!output.status.success(), "{script} succeeds");
        String::from_utf8(output.stderr).unwrap()
    }

    /// What the tools were asked, one call a line, with paths from the repository.
    fn calls(&self) -> Vec<String> {
        let log = fs::read_to_string(self.path("log")).unwrap();
        let root = self.root.path().canonicalize().unwrap();
        [self.path(""), root.join("repository/"), root.join("real/")]
            .iter()
            .fold(log, |log, root| log.replace(&*root.to_string_lossy(), ""))
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
        let slice = format!("target/xcframework/{target}");
        assert_called(&calls, &format!("rustup target add {target}"));
        assert_called(
            &calls,
            &format!(
                "cargo --color never rustc --release --package mynah-bindings --lib --crate-type staticlib \
             --target {target} --target-dir target/xcframework/cargo -- --print native-static-libs {deployment}"
            ),
        );
        assert_called(
            &calls,
            &format!(
                "xcrun -sdk {sdk} clang -target {clang} -dynamiclib -o {slice}/{place}/MynahFFI \
             -Wl,-force_load,target/xcframework/cargo/{target}/release/libmynah_bindings.a -lc++ -framework Metal \
             -install_name @rpath/{place}/MynahFFI -Wl,-dead_strip -fapplication-extension \
             -Wl,-exported_symbol,_ffi_mynah_* -Wl,-exported_symbol,_uniffi_mynah_*"
            ),
        );
        // The symbols for crash reports are taken before they are stripped.
        let symbols =
            format!("xcrun dsymutil {slice}/{place}/MynahFFI -o {slice}/MynahFFI.framework.dSYM");
        assert_called(&calls, &symbols);
        let strip = format!("xcrun strip -S -x {slice}/{place}/MynahFFI");
        let place_of = |call: &str| calls.iter().position(|made| made == call);
        assert!(place_of(&symbols) < place_of(&strip), "{}", calls.join("\n"));
        // Headers come from the SDK of the slice, and no path of this machine goes into the library.
        let repository = mac.root.path().join("repository");
        assert_called(
            &calls,
            &format!(
                "flags of {target}: -isysroot /SDKs/{sdk}, line-tables-only, \
                 --remap-path-prefix={}=mynah --remap-path-prefix=home/.cargo=cargo",
                repository.display()
            ),
        );
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(said.contains(&format!("{target}: ")), "no size of {target} in {said}");
    }
    let slices: String = ["darwin", "ios", "ios-sim"]
        .map(|system| {
            let framework = format!("target/xcframework/aarch64-apple-{system}/MynahFFI.framework");
            format!("-framework {framework} -debug-symbols {framework}.dSYM ")
        })
        .concat();
    assert_called(
        &calls,
        &format!("xcodebuild -create-xcframework {slices}-output apple/MynahFFI.xcframework"),
    );
    // Without a certificate nothing is signed.
    assert!(!calls.iter().any(|call| call.starts_with("codesign")));
}

#[test]
fn mlx_is_the_reviewed_release_with_our_changes() {
    let mac = Mac::new();
    mac.build();
    mac.build();
    let calls = mac.calls();
    let release = "curl https://github.com/ml-explore/mlx/archive/refs/tags/v0.32.2.tar.gz";
    assert_eq!(calls.iter().filter(|call| *call == release).count(), 1, "{}", calls.join("\n"));
    assert!(!calls.iter().any(|call| call.contains("compiler runtime")));
    // The kernels are compiled with the SDK of their slice, and the oldest system of an app does not
    // decide whether it has those for neural accelerators.
    let kernels = mac.read("mlx-0.32.2/mlx/backend/metal/kernels/CMakeLists.txt");
    assert!(kernels.contains("-sdk ${KERNEL_SDK} metal") && !kernels.contains("-sdk macosx metal"));
    let metal = mac.read("mlx-0.32.2/mlx/backend/metal/CMakeLists.txt");
    assert!(metal.contains("if(NAX_SDK_VERSION VERSION_GREATER_EQUAL 26.2)"), "{metal}");
    assert!(!metal.contains("CMAKE_OSX_DEPLOYMENT_TARGET VERSION_GREATER_EQUAL"), "{metal}");

    let systems: Vec<_> = calls.iter().filter_map(|call| call.strip_prefix("cmake ")).collect();
    let system = |name: &str, sdk, least| {
        format!(
            "{name}set(CMAKE_SYSTEM_PROCESSOR arm64) set(CMAKE_OSX_ARCHITECTURES arm64) \
             set(CMAKE_OSX_SYSROOT {sdk}) set(CMAKE_OSX_DEPLOYMENT_TARGET {least}) \
             set(CMAKE_CXX_FLAGS_INIT -gline-tables-only) \
             set(FETCHCONTENT_SOURCE_DIR_MLX target/xcframework/mlx-0.32.2 CACHE PATH \"\")"
        )
    };
    let ios = "set(CMAKE_SYSTEM_NAME iOS) ";
    let expected = [
        system("", "macosx", "14.0"),
        system(ios, "iphoneos", "17.0"),
        system(ios, "iphonesimulator", "17.0"),
    ];
    assert_eq!(systems[..3], expected);

    // A changed patch is applied to fresh sources.
    let patch = mac.path("scripts/apple/mlx.patch");
    fs::write(&patch, format!("A remark.\n{}", fs::read_to_string(&patch).unwrap())).unwrap();
    mac.build();
    assert_eq!(mac.calls().iter().filter(|call| *call == release).count(), 2);
}

#[test]
fn a_changed_release_of_mlx_is_refused() {
    let mac = Mac::new();
    mac.tool("home/.cargo/bin/shasum", "shift 2; sha256sum \"$@\"");
    let said = mac.refuse("scripts/xcframework");
    assert!(said.contains("mlx-0.32.2.tar.gz is not the release that was reviewed"), "{said}");
    assert!(!mac.calls().iter().any(|call| call.starts_with("cargo")));
}

#[test]
fn a_framework_holds_what_its_users_and_the_store_look_for() {
    let mac = Mac::new();
    fs::write(mac.path("Cargo.toml"), "version = \"1.2.3-beta.4\"\n").unwrap();
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
        let privacy = mac.read(&file(&format!("{resources}/PrivacyInfo.xcprivacy")));
        // Files of the app's container and files that the user picked; free space; time since the start.
        for reason in ["C617.1", "3B52.1", "E174.1", "35F9.1"] {
            assert!(privacy.contains(&format!("<string>{reason}</string>")), "{privacy}");
        }
        let information = mac.read(&file(&format!("{resources}/Info.plist")));
        assert!(information.contains(system), "{information}");
        // The store refuses a version with letters.
        assert_eq!(information.matches("<string>1.2.3</string>").count(), 2, "{information}");
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

#[test]
fn a_framework_without_kernels_is_not_shipped() {
    let mac = Mac::new();
    mac.tool(
        "home/.cargo/bin/cargo",
        &CARGO.replace("echo \"$target\" >\"$MLX_RS_METAL_PATH", "true \""),
    );
    let said = mac.refuse("scripts/xcframework");
    assert!(said.contains("MLX has no kernels for aarch64-apple-darwin"), "{said}");
    assert!(said.contains("delete target/xcframework"), "{said}");
    assert!(!mac.path("apple/MynahFFI.xcframework.zip").exists());
}

#[test]
fn a_build_that_hides_its_libraries_is_refused() {
    let mac = Mac::new();
    // The notes of a cargo that colours whatever it is told.
    mac.tool("home/.cargo/bin/cargo", &CARGO.replace("|| note=note", "|| true"));
    let said = mac.refuse("scripts/xcframework");
    assert!(said.contains("does not say which libraries aarch64-apple-darwin links"), "{said}");
    assert!(!mac.calls().iter().any(|call| call.contains("-dynamiclib")));
}

#[test]
fn a_framework_is_signed_before_it_is_packed() {
    let mac = Mac::new();
    let identity = "Apple Distribution: Example (ABCDE12345)";
    let output = mac.run("scripts/xcframework", &[("MYNAH_SIGNING_IDENTITY", identity)]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let calls = mac.calls();
    let place_of = |start: &str| calls.iter().position(|call| call.starts_with(start)).unwrap();
    let signing =
        place_of(&format!("codesign --timestamp --sign {identity} apple/MynahFFI.xcframework"));
    assert!(place_of("xcodebuild -create-xcframework") < signing);
    assert!(signing < place_of("ditto -c -k"));
}

#[test]
fn setting_up_a_mac_asks_for_what_is_missing() {
    // The command line tools have no xcodebuild that answers.
    let mac = Mac::new();
    mac.tool("home/.cargo/bin/xcodebuild", "exit 1");
    let said = mac.refuse("scripts/setup");
    assert!(said.contains("mynah needs Xcode: install it from the App Store"), "{said}");

    // Xcode 26 has the Metal toolchain as a download, which older systems refuse.
    let mac = Mac::new();
    mac.tool("home/.cargo/bin/xcrun", "exit 1");
    mac.tool("home/.cargo/bin/xcodebuild", "log \"xcodebuild $*\"; [ \"$1\" = -version ]");
    let said = mac.refuse("scripts/setup");
    assert_called(&mac.calls(), "xcodebuild -downloadComponent MetalToolchain");
    assert!(said.contains("run xcodebuild -downloadComponent MetalToolchain"), "{said}");

    // Otherwise it is downloaded without a question; MLX is built without its slow debug checks.
    let mac = Mac::new();
    mac.tool("home/.cargo/bin/xcrun", "exit 1");
    assert!(mac.run("scripts/setup", &[]).status.success());
    assert_called(&mac.calls(), "xcodebuild -downloadComponent MetalToolchain");
    let settings = fs::read_to_string(mac.path(".cargo/config.toml")).unwrap();
    assert_eq!(settings, "[profile.dev.build-override]\ndebug-assertions = false\n");

    // Nothing is downloaded where everything is there.
    let mac = Mac::new();
    assert!(mac.run("scripts/setup", &[]).status.success());
    assert!(!mac.calls().iter().any(|call| call.contains("-downloadComponent")));
}

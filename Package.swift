// swift-tools-version: 6.0
import Foundation
import PackageDescription

/// The archive of the released version; the release writes it here.
let release: (url: String, checksum: String)? = nil

let archive = "apple/MynahFFI.xcframework"

// Developers of the package, on a Mac or on Linux, use the library that scripts/bindings builds, or the framework of
// scripts/xcframework if it exists. SwiftPM does not notice that it appears; a variable of the environment decides anew.
let isFrameworkBuilt =
    Context.environment["MYNAH_FRAMEWORK"].map { $0 == "1" }
    ?? FileManager.default.fileExists(atPath: "\(Context.packageDirectory)/\(archive)")
let profile = Context.environment["MYNAH_PROFILE"] ?? "debug"
let libraries = "\(Context.packageDirectory)/target/\(profile)"
var core = Target.systemLibrary(name: "MynahFFI", path: "apple/Sources/MynahFFI")
var settings: [LinkerSetting] = [
    .linkedLibrary("mynah_bindings"),
    .unsafeFlags(["-L", libraries, "-Xlinker", "-rpath", "-Xlinker", libraries]),
]

#if os(Linux)
// libswiftObservation of Swift 6.0 refers to a function that no library defines, and never calls it.
settings.append(.unsafeFlags(["-Xlinker", "--allow-shlib-undefined"]))
#endif

if isFrameworkBuilt {
    core = .binaryTarget(name: "MynahFFI", path: archive)
    settings = []
} else if let release {
    core = .binaryTarget(name: "MynahFFI", url: release.url, checksum: release.checksum)
    settings = []
}

let package = Package(
    name: "Mynah",
    platforms: [.macOS(.v14), .iOS(.v17)],
    products: [
        .library(name: "Mynah", targets: ["Mynah"]),
        // The names of mlx-swift-lm and FFAI, for code that is written for them.
        .library(name: "MynahCompatibility", targets: ["MynahCompatibility"]),
        // A model for sessions of Apple's FoundationModels, where its SDK takes one.
        .library(name: "MynahFoundationModels", targets: ["MynahFoundationModels"]),
    ],
    targets: [
        core,
        .target(
            name: "MynahCore", dependencies: ["MynahFFI"], path: "apple/Sources/MynahCore",
            // The code that uniffi generates for traits with asynchronous methods does not compile as Swift 6.
            swiftSettings: [.swiftLanguageMode(.v5)], linkerSettings: settings),
        .target(name: "Mynah", dependencies: ["MynahCore"], path: "apple/Sources/Mynah"),
        .target(name: "MynahCompatibility", dependencies: ["Mynah"], path: "apple/Sources/MynahCompatibility"),
        .target(name: "MynahFoundationModels", dependencies: ["Mynah"], path: "apple/Sources/MynahFoundationModels"),
        .executableTarget(name: "bench", dependencies: ["Mynah", "MynahCore"], path: "apple/Bench"),
        .testTarget(
            name: "MynahTests", dependencies: ["Mynah", "MynahCompatibility", "MynahCore"],
            path: "apple/Tests/MynahTests"),
    ]
)

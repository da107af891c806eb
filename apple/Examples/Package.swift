// swift-tools-version: 6.0
import PackageDescription

let mynah = Target.Dependency.product(name: "Mynah", package: "Mynah")

// The app itself is Chat/Chat.xcodeproj; this package tests its files that do not use SwiftUI.
let package = Package(
    name: "Examples",
    platforms: [.macOS(.v14)],
    dependencies: [.package(name: "Mynah", path: "../..")],
    targets: [
        .executableTarget(name: "chat", dependencies: [mynah], path: "Command"),
        .target(
            name: "Chat", dependencies: [mynah], path: "Chat/Chat",
            exclude: ["ChatApp.swift", "ChatView.swift", "ModelPicker.swift"]),
        .testTarget(name: "ChatTests", dependencies: ["Chat", mynah], path: "Tests"),
    ]
)

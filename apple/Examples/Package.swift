// swift-tools-version: 6.0
import PackageDescription

let mynah = Target.Dependency.product(name: "Mynah", package: "Mynah")

// The app is Chat/Chat.xcodeproj. This package tests the files of the app that do not use SwiftUI.
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

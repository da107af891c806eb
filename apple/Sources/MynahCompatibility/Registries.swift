import Foundation
import Mynah

// The models that mlx-swift-lm names.

/// Tested models under mlx-swift-lm's names.
public final class LLMRegistry: Sendable {
    public static let shared = LLMRegistry()

    private init() {}

    /// The configuration of a repository; one with the name only if the registry does not contain it.
    public func configuration(id: String) -> ModelConfiguration {
        models.first { $0.name == id } ?? ModelConfiguration(id: id)
    }

    public func contains(id: String) -> Bool { models.contains { $0.name == id } }

    public var models: [ModelConfiguration] {
        [
            Self.llama3_2_3B_4bit,
            Self.llama3_2_1B_4bit,
            Self.llama3_8B_4bit,
            Self.llama3_1_8B_4bit,
            Self.mistral7B4bit,
            Self.mistralNeMo4bit,
            Self.qwen2_5_7b,
            Self.qwen2_5_1_5b,
            Self.qwen3_4b_4bit,
            Self.qwen3_8b_4bit,
            Self.qwen3MoE_30b_a3b_4bit,
            Self.gemma2bQuantized,
            Self.gemma_2_2b_it_4bit,
            Self.gemma_2_9b_it_4bit,
            Self.gemma3_1B_qat_4bit,
            Self.gemma3n_E4B_it_lm_4bit,
            Self.phi4bit,
            Self.phi3_5_4bit,
            Self.phi3_5MoE,
            Self.deepSeekR1_7B_4bit,
            Self.deepseek_r1_4bit,
            Self.glm4_9b_4bit,
        ]
    }

    public static let llama3_2_3B_4bit = known("Llama-3.2-3B-Instruct-4bit", ends: ["<|eot_id|>"])
    public static let llama3_2_1B_4bit = known("Llama-3.2-1B-Instruct-4bit", ends: ["<|eot_id|>"])
    public static let llama3_8B_4bit = known("Meta-Llama-3-8B-Instruct-4bit", ends: ["<|eot_id|>"])
    public static let llama3_1_8B_4bit = known("Meta-Llama-3.1-8B-Instruct-4bit", ends: ["<|eot_id|>"])
    public static let mistral7B4bit = known("Mistral-7B-Instruct-v0.3-4bit")
    public static let mistralNeMo4bit = known("Mistral-Nemo-Instruct-2407-4bit")
    public static let qwen2_5_7b = known("Qwen2.5-7B-Instruct-4bit", ends: ["<|im_end|>"])
    public static let qwen2_5_1_5b = known("Qwen2.5-1.5B-Instruct-4bit", ends: ["<|im_end|>"])
    public static let qwen3_4b_4bit = known("Qwen3-4B-4bit", ends: ["<|im_end|>"])
    public static let qwen3_8b_4bit = known("Qwen3-8B-4bit", ends: ["<|im_end|>"])
    public static let qwen3MoE_30b_a3b_4bit = known("Qwen3-30B-A3B-4bit", ends: ["<|im_end|>"])
    public static let gemma2bQuantized = known("quantized-gemma-2b-it")
    public static let gemma_2_2b_it_4bit = known("gemma-2-2b-it-4bit")
    public static let gemma_2_9b_it_4bit = known("gemma-2-9b-it-4bit")
    public static let gemma3_1B_qat_4bit = known("gemma-3-1b-it-qat-4bit", ends: ["<end_of_turn>"])
    public static let gemma3n_E4B_it_lm_4bit = known("gemma-3n-E4B-it-lm-4bit", ends: ["<end_of_turn>"])
    public static let phi4bit = known("phi-2-hf-4bit-mlx")
    public static let phi3_5_4bit = known("Phi-3.5-mini-instruct-4bit", ends: ["<|end|>"])
    public static let phi3_5MoE = known("Phi-3.5-MoE-instruct-4bit", ends: ["<|end|>"])
    public static let deepSeekR1_7B_4bit = known("DeepSeek-R1-Distill-Qwen-7B-4bit")
    public static let deepseek_r1_4bit = known("DeepSeek-R1-4bit")
    public static let glm4_9b_4bit = known("GLM-4-9B-0414-4bit")

    private static func known(_ name: String, ends: Set<String> = []) -> ModelConfiguration {
        ModelConfiguration(id: "mlx-community/\(name)", extraEOSTokens: ends)
    }
}

/// The name of ``LLMRegistry`` in FFAI and in older code.
public typealias ModelRegistry = LLMRegistry

/// Models with vision under mlx-swift-lm's names. Loading one throws ``MynahError/Code/unsupported`` until its vision
/// is supported.
public enum VLMRegistry {
    public static let qwen2VL2BInstruct4Bit = known("mlx-community/Qwen2-VL-2B-Instruct-4bit")
    public static let qwen2_5VL3BInstruct4Bit = known("mlx-community/Qwen2.5-VL-3B-Instruct-4bit")
    public static let qwen3VL4BInstruct4Bit = known("lmstudio-community/Qwen3-VL-4B-Instruct-MLX-4bit")
    public static let gemma3_4B_qat_4bit = known("mlx-community/gemma-3-4b-it-qat-4bit", ends: ["<end_of_turn>"])
    public static let gemma3_12B_qat_4bit = known("mlx-community/gemma-3-12b-it-qat-4bit", ends: ["<end_of_turn>"])
    public static let gemma3_27B_qat_4bit = known("mlx-community/gemma-3-27b-it-qat-4bit", ends: ["<end_of_turn>"])
    public static let paligemma3bMix448_8bit = known("mlx-community/paligemma-3b-mix-448-8bit")

    private static func known(_ id: String, ends: Set<String> = []) -> ModelConfiguration {
        ModelConfiguration(id: id, defaultPrompt: "Describe the image in English", extraEOSTokens: ends)
    }
}

/// The supported values of `model_type`.
public final class LLMTypeRegistry: Sendable {
    public static let shared = LLMTypeRegistry()

    private init() {}

    public var types: [String] { Model.supportedArchitectures }
}

/// Loads detectors of speech by the calls of FFAI.
public enum VADModelRegistry {
    /// Loads a model by its name, and downloads it first if it is not on the disk.
    public static func fromPretrained(_ id: String, options: LoadOptions = .init()) async throws -> VADModel {
        try await VADModel.load(id, options: options)
    }

    /// Loads the model of a folder.
    public static func loadFromDirectory(_ folder: URL) async throws -> VADModel { try await VADModel.load(folder) }
}

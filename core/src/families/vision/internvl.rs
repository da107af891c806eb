//! InternVL: a vision transformer with a class token and a scale of each branch over tiles of a
//! picture, squares of patches that become one feature, an MLP as projector, and Qwen 2 or another
//! language model. Follows `modeling_internvl` of transformers.

use crate::families::{multimodal, prelude::*};

pub const FAMILY: Family =
    Family { model_types: &["internvl"], build, recommended: Recommended::NOTHING };

#[derive(Deserialize)]
struct Config {
    downsample_ratio: Positive,
    projector_hidden_act: String,
}

/// The fields of the tower that others do not have.
#[derive(Deserialize)]
struct Intern {
    norm_type: String,
    use_qk_norm: bool,
    attention_bias: bool,
    use_absolute_position_embeddings: bool,
    use_mean_pooling: bool,
    qk_norm_eps: Epsilon,
}

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let text = multimodal::text_model(config, w, "qwen2")?;
    if !multimodal::has_tower(config, w)? {
        return Ok(text);
    }
    config::only(
        config,
        json!({"vision_feature_layer": -1, "vision_feature_select_strategy": "default"}),
    )?;
    let nested = config::with_defaults(
        vision_config(config)?,
        json!({
            "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
            "num_attention_heads": 16, "image_size": 448, "patch_size": 14,
            "hidden_act": "gelu", "layer_norm_eps": 1e-6, "norm_type": "layer_norm",
            "use_qk_norm": false, "attention_bias": false, "use_mean_pooling": true,
            "use_absolute_position_embeddings": false, "qk_norm_eps": 1e-6,
        }),
    );
    let tower = Tiles::read(config, &InternConfig::read(&nested, &[])?, w)?;
    Ok(Box::new(Sighted::new(text, tower, multimodal::placeholder(config, 151_667)?)))
}

/// The `vision_config`.
pub struct InternConfig {
    pub shared: VisionConfig,
    own: Intern,
    /// After how many blocks the features are taken.
    pub blocks: i32,
}

impl InternConfig {
    /// Reads the fields of a `vision_config` that has other names for some: `(theirs, ours)`.
    ///
    /// # Errors
    /// [`Error::Config`] with the field at fault, by their name.
    pub fn read(nested: &Json, names: &[(&str, &str)]) -> Result<Self> {
        let mut sides = config::without(nested, &["image_size", "patch_size"]);
        for name in ["image_size", "patch_size"] {
            // Of height and width, which are equal.
            let side = nested.get(name).map(|side| side.as_array().and_then(<[Json]>::first).unwrap_or(side));
            sides = sides.with(name, side.cloned().unwrap_or(Value::Null.into()));
        }
        let own = config::read_renamed(nested, names, config::read).map_err(in_vision_config)?;
        let shared = VisionConfig::read(&sides, names)?;
        Ok(InternConfig { blocks: *shared.num_hidden_layers, shared, own })
    }
}

struct InternTower {
    patches: PatchEmbedding,
    /// `[1, 1, width]`.
    class: Array,
    /// Of the class token, `[1, 1, width]`, and of the patches.
    positions: Option<(Array, PositionTable)>,
    encoder: Encoder,
    norm: Option<Norm>,
}

impl InternTower {
    fn read(c: &InternConfig, w: &Scope) -> Result<Self> {
        let InternConfig { shared: c, own: e, blocks } = c;
        let (width, embeddings) = (*c.hidden_size, w.at("embeddings"));
        let patches = embeddings.at("patch_embeddings");
        let kernel = Kernel::square(*c.num_channels, *c.patch_size);
        let last = || w.layer_norm_with_bias("layernorm", width, *c.layer_norm_eps);
        let positions = || {
            let all = embeddings.take("position_embeddings", &[1, c.side() * c.side() + 1, width])?;
            let part = |from, to| Ok::<_, Error>(embeddings.keep(mlx::slice(&all, 1, from, to)?));
            let patches = part(1, all.dim(1))?.flatten(0, 1)?;
            Ok::<_, Error>((part(0, 1)?, PositionTable::square(patches, c.side())))
        };
        Ok(InternTower {
            patches: PatchEmbedding::with_bias(&patches, "projection", kernel, width)?,
            class: embeddings.tensor("cls_token", &[1, 1, width])?,
            positions: e.use_absolute_position_embeddings.then(positions).transpose()?,
            encoder: Encoder::read(&w.at("encoder.layer"), *blocks, |_, w| {
                block(w, c, e)
            })?,
            norm: (!e.use_mean_pooling).then(last).transpose()?,
        })
    }

    /// Tiles `[tiles, channels, height, width]` to the patches after the last block.
    fn forward(&self, pixels: &Array) -> Result<Array> {
        let mut x = self.patches.forward(pixels)?;
        let mut class = self.class.clone();
        if let Some((of_class, table)) = &self.positions {
            class = class.add(of_class)?;
            let places = table.sampled(self.patches.grid(pixels), Interpolation::Bicubic)?;
            x = x.add(places.as_dtype(x.dtype())?)?;
        }
        let class = ops::broadcast_to(&class, &[x.dim(0), 1, x.dim(2)])?;
        let x = ops::concatenate(&[class.as_dtype(x.dtype())?, x], 1)?;
        let x = self.encoder.forward(&x, &Step::prefill(0, x.dim(1)))?;
        let x = self.norm.as_ref().map_or(Ok(x.clone()), |norm| norm.forward(&x))?;
        mlx::slice(&x, 1, 1, x.dim(1))
    }
}

fn block(w: &Scope, c: &VisionConfig, e: &Intern) -> Result<Ffn> {
    let (width, eps) = (*c.hidden_size, *c.layer_norm_eps);
    let norm = |name| match &*e.norm_type {
        "layer_norm" => w.layer_norm_with_bias(name, width, eps),
        "rms_norm" => w.rms_norm(name, width, eps),
        kind => {
            let reason = format!("`{kind}` is neither layer_norm nor rms_norm");
            Err(Error::unsupported("vision_config.norm_type", reason))
        }
    };
    let a = w.at("attention");
    let is_fused = a.has_below("qkv");
    let inputs: &[&str] = if is_fused { &["qkv"] } else { &["q_proj", "k_proj", "v_proj"] };
    let biased = if e.attention_bias { inputs } else { &[] };
    const OUTPUT: &str = "projection_layer";
    biased.iter().chain(&[OUTPUT]).try_for_each(|name| a.at(name).require("bias"))?;
    let mut attention = match is_fused {
        true => encoder::fused_attention(&a, OUTPUT, c, Rope::None)?,
        false => encoder::attention(&a, AttentionNames::with_output(OUTPUT), c, Rope::None)?,
    };
    if e.use_qk_norm {
        let norm = |name| a.rms_norm(name, width, *e.qk_norm_eps);
        attention = attention.qk_norm(QkNorm::Whole(norm("q_norm")?, norm("k_norm")?));
    }
    let scale = |name| -> Result<_> {
        let factors = w.tensor(name, &[width])?;
        Ok(Map(move |x: &Array| -> Result<Array> { Ok(x.multiply(&factors)?) }))
    };
    let attention = encoder::block(attention, scale("lambda_1")?);
    let mlp = encoder::plain_mlp(&w.at("mlp"), FC1_FC2, c)?;
    let mlp = encoder::block(mlp, scale("lambda_2")?);
    Ok(encoder::block(
        Residual::pre(norm("layernorm_before")?, attention),
        Residual::pre(norm("layernorm_after")?, mlp),
    ))
}

/// The tower and the projector.
pub struct Tiles {
    vision: InternTower,
    /// The side of the squares of patches that become one feature.
    side: i32,
    /// Whether the features of a tile stand column by column.
    is_transposed: bool,
    norm: Norm,
    first: Linear,
    activation: activation::Activation,
    second: Linear,
}

impl Tiles {
    /// Reads both.
    ///
    /// # Errors
    /// As [`Scope::linear`], and for a field of the config.
    pub fn read(config: &Json, c: &InternConfig, w: &Scope) -> Result<Self> {
        let e: Config = config::read(&config::with_defaults(
            config,
            json!({"downsample_ratio": 0.5, "projector_hidden_act": "gelu"}),
        ))?;
        let vision = InternTower::read(c, &multimodal::tower(w))?;
        let side = (1.0 / *e.downsample_ratio).round() as i32;
        let inputs = square_width("downsample_ratio", side, *c.shared.hidden_size)?;
        let projector = multimodal::part(w, &["multi_modal_projector"]);
        let width = multimodal::text_width(config)?;
        Ok(Tiles {
            vision,
            side,
            is_transposed: false,
            norm: projector.layer_norm_with_bias("layer_norm", inputs, 1e-5)?,
            first: projector.linear_with_bias("linear_1", inputs, width)?,
            activation: activation::named("projector_hidden_act", &e.projector_hidden_act)?,
            second: projector.linear_with_bias("linear_2", width, width)?,
        })
    }

    /// With the features of a tile column by column.
    pub fn transposed(self, is_transposed: bool) -> Self {
        Tiles { is_transposed, ..self }
    }
}

impl Tower for Tiles {
    fn encode(&self, picture: &Media) -> Result<Vec<Array>> {
        let pixels = picture.tensor("pixel_values")?;
        let (x, grid) = (self.vision.forward(pixels)?, self.vision.patches.grid(pixels));
        let mut x = grid.merge(&x, self.side, MergeOrder::PatchFirst)?;
        if self.is_transposed {
            let shape = [x.dim(0), grid.rows / self.side, grid.columns / self.side, x.dim(2)];
            x = x.reshape(&shape)?.transpose_axes(&[0, 2, 1, 3])?.flatten(1, 2)?;
        }
        let x = self.norm.forward(&x)?;
        let x = self.second.forward(&(self.activation)(&self.first.forward(&x)?)?)?;
        Ok(vec![x.flatten(0, 1)?])
    }
}

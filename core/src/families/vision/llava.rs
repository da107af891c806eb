//! LLaVA 1.5 and its kin: CLIP, SigLIP or Pixtral's tower, features of one or several of its layers,
//! an MLP as projector, and any language model. Follows `modeling_llava` of transformers.

use crate::families::{multimodal, prelude::*, vision::mistral3::PixtralTower};

pub const FAMILY: Family =
    Family { model_types: &["llava", "pixtral"], build, recommended: Recommended::NOTHING };

#[derive(Deserialize)]
struct Config {
    vision_feature_layer: PerLayer<i32>,
    vision_feature_select_strategy: String,
    multimodal_projector_bias: bool,
    projector_hidden_act: String,
}

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let text = multimodal::text_model(config, w, "llama")?;
    if !multimodal::has_tower(config, w)? {
        return Ok(text);
    }
    let placeholder = multimodal::placeholder(config, 32_000)?;
    Ok(Box::new(Sighted::new(text, Llava::read(config, w)?, placeholder)))
}

/// A tower of one of the three kinds, the layers of which features are taken, and the projector.
pub struct Llava {
    vision: Vision,
    layers: Vec<usize>,
    /// Whether the class token is left out.
    drops_class: bool,
    projector: Projector,
}

enum Vision {
    Transformer(VisionTransformer),
    Pixtral(PixtralTower),
}

impl Llava {
    pub fn read(config: &Json, w: &Scope) -> Result<Self> {
        let e: Config = config::read(&config::with_defaults(
            config,
            json!({
                "vision_feature_layer": -2, "vision_feature_select_strategy": "default",
                "multimodal_projector_bias": true, "projector_hidden_act": "gelu",
            }),
        ))?;
        let place = multimodal::tower(w);
        let kind: Option<String> = config::field(vision_config(config)?, "model_type")?;
        let (c, vision) = match kind.as_deref() {
            Some("pixtral") => {
                let c = PixtralTower::config(config)?;
                let tower = PixtralTower::read(&place, &c)?;
                (c, Vision::Pixtral(tower))
            }
            Some("siglip_vision_model") => {
                let c = VisionConfig::siglip(config)?;
                let tower = VisionTransformer::siglip(&place, &c)?;
                (c, Vision::Transformer(tower))
            }
            None | Some("clip_vision_model") => {
                let c = VisionConfig::clip(config)?;
                let tower = VisionTransformer::clip(&place, &c)?;
                (c, Vision::Transformer(tower))
            }
            Some(kind) => {
                let reason = format!("`{kind}` is not supported");
                return Err(Error::unsupported("vision_config.model_type", reason));
            }
        };
        let states = *c.num_hidden_layers + 1;
        let layer = |layer: &i32| {
            let place = if *layer < 0 { states + *layer } else { *layer };
            let missing = || Error::config("vision_feature_layer", format!("there is no {layer}"));
            usize::try_from(place).ok().filter(|_| place < states).ok_or_else(missing)
        };
        let entries = e.vision_feature_layer.entries();
        if entries.is_empty() {
            return Err(Error::config("vision_feature_layer", "is empty"));
        }
        let layers = entries.iter().map(layer).collect::<Result<Vec<_>>>()?;
        let inputs = config::product("vision_feature_layer", [
            layers.len() as i32,
            *c.hidden_size,
        ])?;
        let projector = multimodal::part(w, &["multi_modal_projector", "mm_projector"]);
        Ok(Llava {
            vision,
            layers,
            drops_class: e.vision_feature_select_strategy == "default",
            projector: Projector::read(&projector, inputs, multimodal::text_width(config)?, &e)?,
        })
    }

    /// The features of pictures `[batch, channels, height, width]`, `[batch, features, width]`.
    pub fn features(&self, pixels: &Array) -> Result<Array> {
        let states = match &self.vision {
            Vision::Transformer(tower) => tower.hidden_states(pixels)?,
            Vision::Pixtral(tower) => tower.hidden_states(pixels)?,
        };
        let states = self.layers.iter().map(|layer| {
            let state = &states[*layer];
            Ok(if self.drops_class { mlx::slice(state, 1, 1, state.dim(1))? } else { state.clone() })
        });
        self.projector.forward(&ops::concatenate(&states.collect::<Result<Vec<_>>>()?, -1)?)
    }

    /// The grid of the features of such pictures.
    pub fn grid(&self, pixels: &Array) -> Grid {
        match &self.vision {
            Vision::Transformer(tower) => tower.grid(pixels),
            Vision::Pixtral(tower) => tower.grid(pixels),
        }
    }
}

impl Tower for Llava {
    fn encode(&self, picture: &Media) -> Result<Vec<Array>> {
        Ok(vec![self.features(picture.tensor("pixel_values")?)?.flatten(0, 1)?])
    }
}

/// Two projections with an activation between them.
pub struct Projector {
    first: Linear,
    activation: activation::Activation,
    second: Linear,
}

impl Projector {
    fn read(w: &Scope, inputs: i32, width: i32, e: &Config) -> Result<Self> {
        let read =
            if e.multimodal_projector_bias { Scope::linear_with_bias } else { Scope::linear };
        let names = if w.has_below("0") { ["0", "2"] } else { ["linear_1", "linear_2"] };
        Ok(Projector {
            first: read(w, names[0], inputs, width)?,
            activation: activation::named("projector_hidden_act", &e.projector_hidden_act)?,
            second: read(w, names[1], width, width)?,
        })
    }

    fn forward(&self, x: &Array) -> Result<Array> {
        self.second.forward(&(self.activation)(&self.first.forward(x)?)?)
    }
}

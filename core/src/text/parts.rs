//! Messages whose content is parts of text and media.

use crate::{
    media::Attachment,
    text::{Content, Message, Part},
};

impl Part {
    /// A picture or a clip.
    pub fn media(media: impl Into<Attachment>) -> Self {
        let media = media.into();
        Part { kind: media.kind().into(), media: Some(media), ..Part::default() }
    }

    /// Text.
    pub fn text(text: &str) -> Self {
        Part { kind: "text".into(), text: Some(text.into()), ..Part::default() }
    }
}

impl Message {
    /// A user's message with pictures before its text.
    pub fn with_media(media: impl IntoIterator<Item = impl Into<Attachment>>, text: &str) -> Self {
        let mut message = Message::user(text);
        message.put_media(media.into_iter().map(Into::into).collect());
        message
    }

    /// Puts pictures before the content.
    pub(crate) fn put_media(&mut self, media: Vec<Attachment>) {
        let rest = match self.content.take() {
            Some(Content::Text(text)) => vec![Part::text(&text)],
            Some(Content::Parts(parts)) => parts,
            Some(Content::Other(_)) | None => Vec::new(),
        };
        let parts = media.into_iter().map(Part::media).chain(rest);
        self.content = Some(Content::Parts(parts.collect()));
    }

    /// The parts of the content; none of a plain text.
    pub(crate) fn parts(&self) -> &[Part] {
        match &self.content {
            Some(Content::Parts(parts)) => parts,
            _ => &[],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        media::image::Image,
        text::{ChatTemplate, TemplateOptions},
    };
    use serde_json::json;

    const LISTS: &str = "{% for m in messages %}{% for p in m.content %}{% if p.type == 'image' %}<image>\
                         {% else %}{{ p.text }}{% endif %}{% endfor %};{% endfor %}";
    const STRINGS: &str = "{% for m in messages %}{{ m.content }};{% endfor %}";
    const BOTH: &str = "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}\
                        {% for p in m.content %}{{ p.text if p.type == 'text' else '<image>' }}\
                        {% endfor %}{% endif %};{% endfor %}";

    fn picture() -> Image {
        Image::from_rgb(1, [1, 2, 3]).unwrap()
    }

    #[test]
    fn templates_get_content_in_the_form_that_they_take() {
        let messages = [
            Message::with_media([picture(), picture()], "what"),
            Message::assistant("a <image>"),
            Message::with_media([picture()], "and"),
        ];
        for (source, marker, expected) in [
            (LISTS, "<image>", "<image><image>what;a <image>;<image>and;"),
            (BOTH, "<image>", "<image><image>what;a <image>;<image>and;"),
            (STRINGS, "<image>", "<image>\n<image>\nwhat;a <image>;<image>\nand;"),
            (STRINGS, "<|image_{}|>", "<|image_1|>\n<|image_2|>\nwhat;a <image>;<|image_3|>\nand;"),
        ] {
            let template = ChatTemplate::from_source(source).unwrap().for_media(marker);
            let rendered = template.rendered(&messages, &TemplateOptions::default()).unwrap();
            assert_eq!(rendered.as_str(), expected);
            // What a message says is no marker, whatever it looks like.
            let said = expected.find("a <image>").unwrap();
            assert!(rendered.runs(said..said + 9).all(|(_, is_given)| is_given));
            assert!(rendered.runs(0..7).all(|(_, is_given)| !is_given));
        }
    }

    #[test]
    fn pictures_stand_before_the_text_of_a_message() {
        let message = Message::with_media([picture()], "what");
        let kinds: Vec<_> = message.parts().iter().map(|part| part.kind.as_str()).collect();
        assert_eq!(kinds, ["image", "text"]);
        let json = serde_json::to_value(&message).unwrap();
        assert_eq!(json["content"], json!([{"type": "image"}, {"type": "text", "text": "what"}]));
    }
}

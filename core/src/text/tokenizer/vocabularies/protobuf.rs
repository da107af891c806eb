//! A reader for the protobuf wire format, as far as sentencepiece models need it.

/// The value of a field.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'a> {
    /// A varint: an integer or a bool.
    Number(u64),
    /// Four bytes, such as a float.
    Fixed32([u8; 4]),
    /// A length-delimited value: text, bytes or a message.
    Bytes(&'a [u8]),
}

impl<'a> Value<'a> {
    /// The value as an integer.
    pub fn int(self) -> Option<i64> {
        if let Value::Number(number) = self { Some(number.cast_signed()) } else { None }
    }

    /// The value as a bool.
    pub fn bool(self) -> Option<bool> {
        self.int().map(|number| number != 0)
    }

    /// The value as a float.
    pub fn float(self) -> Option<f32> {
        if let Value::Fixed32(bytes) = self { Some(f32::from_le_bytes(bytes)) } else { None }
    }

    /// The value as bytes.
    pub fn bytes(self) -> Option<&'a [u8]> {
        if let Value::Bytes(bytes) = self { Some(bytes) } else { None }
    }

    /// The value as UTF-8 text.
    pub fn text(self) -> Option<&'a str> {
        std::str::from_utf8(self.bytes()?).ok()
    }
}

/// The field numbers and values of a message; `None` if it is damaged or truncated.
pub fn fields(message: &[u8]) -> Option<Vec<(u64, Value<'_>)>> {
    let mut rest = message;
    let mut fields = Vec::new();
    while !rest.is_empty() {
        let key = varint(&mut rest)?;
        let value = match key & 7 {
            0 => Some(Value::Number(varint(&mut rest)?)),
            1 => take(&mut rest, 8).map(|_| None)?,
            2 => {
                let length = usize::try_from(varint(&mut rest)?).ok()?;
                Some(Value::Bytes(take(&mut rest, length)?))
            }
            5 => Some(Value::Fixed32(take(&mut rest, 4)?.try_into().ok()?)),
            _ => return None,
        };
        fields.extend(value.map(|value| (key >> 3, value)));
    }
    Some(fields)
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, after) = rest.split_at_checked(length)?;
    *rest = after;
    Some(taken)
}

fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let byte = take(rest, 1)?[0];
        number |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_have_numbers_and_values() {
        let message = [0x08, 0x96, 0x01, 0x12, 2, b'h', b'i', 0x1d, 0, 0, 0x80, 0x3f];
        let read = fields(&message).unwrap();
        assert_eq!(read[0], (1, Value::Number(150)));
        assert_eq!((read[1].0, read[1].1.text()), (2, Some("hi")));
        assert_eq!((read[2].0, read[2].1.float()), (3, Some(1.0)));
        let negative = [0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];
        assert_eq!(fields(&negative).unwrap()[0].1.int(), Some(-1));
        assert!(fields(&[0x09, 1, 2, 3, 4, 5, 6, 7, 8]).unwrap().is_empty());
        for length in [1, 2, 4, 5, 6, 8, 11] {
            assert!(fields(&message[..length]).is_none(), "{length}");
        }
        assert!(fields(&[0x0b]).is_none());
        assert!(fields(&[0xff; 30]).is_none());
    }
}

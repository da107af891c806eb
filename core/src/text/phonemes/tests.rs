//! Texts whose phonemes misaki 0.9.4 gives with spaCy 3.8 and its small English model.

use super::*;

fn said(text: &str) -> String {
    english(text, &Lexicon::default()).unwrap()
}

#[test]
fn texts_are_pronounced_as_misaki_pronounces_them() {
    for (text, phonemes) in [
        ("Hello world!", "həlˈO wˈɜɹld!"),
        (
            "How could I know? It's an unanswerable question, like asking an unborn child if they'll lead a good life.",
            "hˌW kʊd ˌI nˈO? ˌɪts ɐn ˌʌnˈænsəɹəbᵊl kwˈɛsʧᵊn, lˈIk ˈæskɪŋ ɐn ˌʌnbˈɔɹn ʧˈIld ɪf ðAl lˈid ɐ ɡˈʊd lˈIf.",
        ),
        (
            "I have 3 apples and 1,234 oranges.",
            "ˌI hæv θɹˈi ˈæpᵊlz ænd wˈʌn θˈWzᵊnd tˈu hˈʌndɹəd θˈɜɹTi fˈɔɹ ˈɔɹᵊnʤᵻz.",
        ),
        (
            "In 1984, he paid $3.50 for 2 tickets.",
            "ɪn nˌIntˈin ˈATi fˈɔɹ, hi pˈAd θɹˈi dˈɑləɹz ænd fˈɪfti sˈɛnts fɔɹ tˈu tˈɪkəts.",
        ),
        (
            "The year 2024 was hot; the 21st of January was cold.",
            "ðə jˈɪɹ twˈɛnti twˈɛnti fˈɔɹ wʌz hˈɑt; ðə twˈɛnti fˈɜɹst ʌv ʤˈænjəwˌɛɹi wʌz kˈOld.",
        ),
        ("They live near the live wires.", "ðˌA lˈɪv nˌɪɹ ðə lˈIv wˈIəɹz."),
        ("I read the book that you will read.", "ˌI ɹˈɛd ðə bˈʊk ðæt ju wɪl ɹˈid."),
        ("She used to use the used car.", "ʃˌi jˈust tə jˈuz ðə jˈuzd kˈɑɹ."),
        ("The record shows they record music.", "ðə ɹˈɛkəɹd ʃˈOz ðA ɹəkˈɔɹd mjˈuzɪk."),
        ("He wound the bandage around the wound.", "hˌi wˈWnd ðə bˈændɪʤ əɹˈWnd ðə wˈund."),
        ("A, B, and C are letters of the alphabet.", "ɐ, bˈi, ænd sˈi ɑɹ lˈɛTəɹz ʌv ði ˈælfəbˌɛt."),
        ("NASA and the FBI work with IBM.", "nˈæsə ænd ði ˌɛfbˌiˈI wˈɜɹk wɪð ˌIbˌiˈɛm."),
        ("It's 5% of 100, or 0.5.", "ˌɪts fˈIv pəɹsˈɛnt ʌv wˈʌn hˈʌndɹəd, ɔɹ zˈɪɹO pYnt fˈIv."),
        ("We close the door because we are close.", "wˌi klˈOz ðə dˈɔɹ bəkˈʌz wi ɑɹ klˈOs."),
        ("\"Quotes,\" she said, \"are useful.\"", "“kwˈOts,” ʃi sˈɛd, “ɑɹ jˈusfᵊl.”"),
        ("Wait... what? No — never!", "wˈAt... wˌʌt? nˈO — nˈɛvəɹ!"),
        (
            "The apples are in the tree, and the owl flew to an oak.",
            "ði ˈæpᵊlz ɑɹ ɪn ðə tɹˈi, ænd ði ˈWl flˈu tə ɐn ˈOk.",
        ),
        ("He's running, jumping and dancing.", "hˌiz ɹˈʌnɪŋ, ʤˈʌmpɪŋ ænd dˈænsɪŋ."),
        ("They wanted, needed and hoped for it.", "ðˌA wˈɑntᵻd, nˈidᵻd ænd hˈOpt fɔɹ ɪt."),
        ("John's dogs' houses are bigger.", "ʤˈɑnz dˈɔɡz hˈWsᵻz ɑɹ bˈɪɡəɹ."),
        (
            "Please present the present to the president.",
            "plˈiz pɹizˈɛnt ðə pɹˈɛzᵊnt tə ðə pɹˈɛzədˌɛnt.",
        ),
        ("The 3rd, 22nd and 100th times.", "ðə θˈɜɹd, twˈɛnti sˈɛkənd ænd wˈʌn hˈʌndɹədθ tˈImz."),
        ("It costs £20 or €5.", "ˌɪt kˈɔsts twˈɛnti pˈWndz ɔɹ fˈIv jˈʊɹOz."),
        ("The U.S. and the U.K. signed it.", "ðə jˌuˈɛs ænd ðə jˌukˈA sˈInd ɪt."),
        (
            "I'm sure we've got what you'd like, and they won't refuse.",
            "ˌIm ʃˈʊɹ wiv ɡɑt wˌʌt jud lˈIk, ænd ðA wOnt ɹəfjˈuz.",
        ),
        ("Flight 747 leaves at 10.", "flˈIt sˈɛvən hˈʌndɹəd fˈɔɹTi sˈɛvən lˈivz æt tˈɛn."),
        ("I think that that dog is the one.", "ˌI θˈɪŋk ðæt ðˈæt dˈɔɡ ɪz ðə wˈʌn."),
        ("Come in!", "kˈʌm ˈɪn!"),
        ("It is 3 o'clock.", "ˌɪt ɪz θɹˈi əklˈɑk."),
        (
            "Mother-in-law and well-known state-of-the-art things.",
            "mˈʌðəɹənlˌɔ ænd wˌɛlnˈOn stˈAtʌvðiˈɑɹt θˈɪŋz.",
        ),
        (
            "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of foolishness.",
            "ˌɪt wʌz ðə bˈɛst ʌv tˈImz, ɪt wʌz ðə wˈɜɹst ʌv tˈImz, ɪt wʌz ði ˈAʤ ʌv wˈɪzdəm, ɪt wʌz ði ˈAʤ ʌv fˈulɪʃnəs.",
        ),
        (
            "The company's revenue grew by 12.5% to $4,500 last year.",
            "ðə kˈʌmpᵊniz ɹˈɛvənˌu ɡɹˈu bI twˈɛlv pYnt fˈIv pəɹsˈɛnt tə fˈɔɹ θˈWzᵊnd fˈIv hˈʌndɹəd dˈɑləɹz lˈæst jˈɪɹ.",
        ),
        (
            "They were too close to the door to close it.",
            "ðˌA wɜɹ tˈu klˈOs tə ðə dˈɔɹ tə klˈOz ɪt.",
        ),
        (
            "To be, or not to be, that is the question.",
            "tə bˈi, ɔɹ nˌɑt tə bˈi, ðˈæt ɪz ðə kwˈɛsʧᵊn.",
        ),
        ("He asked, \"Are you coming with us?\"", "hˌi ˈæskt, “ˌɑɹ ju kˈʌmɪŋ wɪð ˌʌs?”"),
    ] {
        assert_eq!(said(text), phonemes, "{text}");
    }
}

#[test]
fn a_word_of_the_lexicon_is_pronounced_by_it() {
    let lexicon = lexicon::parse("tomato t@m'A:toU", "words").unwrap();
    assert_eq!(
        english("Tomatoes? Tomato!", &lexicon).unwrap(),
        "təmˈAɾOz? təmˈɑtO!".replace('ɾ', "T")
    );
}

#[test]
fn other_words_are_read_by_their_letters() {
    let word = said("blorfing");
    assert_eq!(word.matches(PRIMARY).count(), 1, "{word}");
    assert!(word.starts_with("bl") && word.ends_with("ɪŋ"), "{word}");
    assert_eq!(said(""), "");
    assert_eq!(said("***"), "");
    assert!(!said(&"9".repeat(100)).is_empty());
}

#[test]
fn letters_of_other_scripts_are_refused() {
    let error = english("Это", &Lexicon::default()).unwrap_err().to_string();
    assert!(error.contains("`Э` is no letter of English"), "{error}");
    assert_eq!(said("café"), said("cafe"));
}

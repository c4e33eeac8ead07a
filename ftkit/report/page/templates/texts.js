"use strict";
// The texts of the page's scripts: English is the key; the page holds their translation where it has another language.
const TEXTS = JSON.parse(document.documentElement.dataset.texts || "{}");
/** Return a text in the language of the page, with values in its placeholders: `{n}` becomes values.n. */
const tr = (text, values = {}) => (TEXTS[text] || text).replace(/\{(\w+)\}/g, (whole, name) => (name in values ? values[name] : whole));

package agentpath

import (
	"text/template"

	"github.com/Masterminds/sprig/v3"
)

// functionNames are the functions of sprig that SPIRE's templates may call.
// None of them reads the environment, the network or the clock.
var functionNames = []string{
	// text
	"abbrev", "abbrevboth", "camelcase", "cat", "contains", "hasPrefix", "hasSuffix", "indent", "initials", "kebabcase",
	"lower", "nindent", "nospace", "plural", "quote", "repeat", "replace", "snakecase", "squote", "substr", "swapcase",
	"title", "toString", "trim", "trimAll", "trimPrefix", "trimSuffix", "trunc", "untitle", "upper", "wrap", "wrapWith",
	// regular expressions
	"mustRegexFind", "mustRegexFindAll", "mustRegexMatch", "mustRegexReplaceAll", "mustRegexReplaceAllLiteral",
	"mustRegexSplit", "regexFind",
	"regexFindAll", "regexMatch", "regexQuoteMeta", "regexReplaceAll", "regexReplaceAllLiteral", "regexSplit",
	// sums and encodings
	"adler32sum", "b32dec", "b32enc", "b64dec", "b64enc", "sha1sum", "sha256sum",
	// lists
	"append", "chunk", "compact", "concat", "first", "has", "initial", "join", "last", "list", "mustAppend", "mustChunk",
	"mustCompact", "mustFirst", "mustHas", "mustInitial", "mustLast", "mustPrepend", "mustPush", "mustRest", "mustReverse",
	"mustSlice", "mustUniq", "mustWithout", "prepend", "push", "rest", "reverse", "seq", "slice", "sortAlpha", "splitList",
	"toStrings", "tuple", "uniq", "without",
	// dictionaries
	"dict", "dig", "get", "hasKey", "keys", "merge", "mergeOverwrite", "mustMerge", "mustMergeOverwrite", "omit", "pick",
	"pluck", "set", "unset", "values",
	// choices, paths, the rest
	"all", "any", "base", "clean", "coalesce", "default", "dir", "empty", "ext", "fail", "isAbs", "ternary", "urlJoin",
	"urlParse", "uuidv4",
}

func functions() template.FuncMap {
	all, out := sprig.TxtFuncMap(), make(template.FuncMap, len(functionNames))
	for _, name := range functionNames {
		out[name] = all[name]
	}
	return out
}

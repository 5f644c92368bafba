package contract

// Differences are what our API has otherwise than Fly's document, on purpose, with the reason. Keys are
// "METHOD path-without-names [parameter | request | status]", or a schema of Fly's with a field.
var Differences = map[string]string{}

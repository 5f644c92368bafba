package api

import "time"

// AppSecret is what may be shown of a secret: never its value.
type AppSecret struct {
	Name      string    `json:"name"`
	Digest    string    `json:"digest"` // changes when the value does, and tells nothing of it
	CreatedAt time.Time `json:"created_at"`
	UpdatedAt time.Time `json:"updated_at"`
}

// AppSecrets are an app's secrets, by name.
type AppSecrets struct {
	Secrets []AppSecret `json:"secrets"`
	Version uint64      `json:"version"` // grows with each change; 0: none was ever set
}

// SetSecrets is the body of POST /v1/apps/{app}/secrets: a value of null unsets the secret.
type SetSecrets struct {
	Values map[string]*string `json:"values"`
}

// SetSecret is the body of POST /v1/apps/{app}/secrets/{name}.
type SetSecret struct {
	Value *string `json:"value"`
}

// ChangedSecret answers a secret that was set.
type ChangedSecret struct {
	AppSecret
	Version uint64 `json:"version"` // of all secrets of the app
}

// SecretsVersion answers a secret that was removed.
type SecretsVersion struct {
	Version uint64 `json:"version"` // of all secrets of the app
}

package api

import "time"

// CertificateSummary is a host name of an app in a list.
type CertificateSummary struct {
	Hostname             string    `json:"hostname"`
	Status               string    `json:"status"`     // active, pending_validation
	Configured           bool      `json:"configured"` // it has a certificate that is good now
	HasCustomCertificate bool      `json:"has_custom_certificate"`
	HasFlyCertificate    bool      `json:"has_fly_certificate"` // one that the platform got by itself
	AcmeRequested        bool      `json:"acme_requested"`
	CreatedAt            time.Time `json:"created_at"`
	UpdatedAt            time.Time `json:"updated_at"`
}

// CertificateList is a page of an app's host names.
type CertificateList struct {
	Certificates []CertificateSummary `json:"certificates"`
	NextCursor   string               `json:"next_cursor"` // empty: there are no more
	TotalCount   int                  `json:"total_count"` // of all pages
}

// CreateCertificate is the body of POST /v1/apps/{app}/certificates: a host name without a certificate of its own.
type CreateCertificate struct {
	Hostname string `json:"hostname"`
}

// CreateCustomCertificate is the body of POST /v1/apps/{app}/certificates/custom.
type CreateCustomCertificate struct {
	Hostname   string `json:"hostname"`    // may begin with "*."
	Fullchain  string `json:"fullchain"`   // PEM: the host's certificate first, then the intermediate ones
	PrivateKey string `json:"private_key"` // PEM, without a passphrase
}

// Certificate is a host name of an app with its certificates.
type Certificate struct {
	Hostname         string                       `json:"hostname"`
	Status           string                       `json:"status"`     // active, pending_validation
	Configured       bool                         `json:"configured"` // it has a certificate that is good now
	AcmeRequested    bool                         `json:"acme_requested"`
	Certificates     []CertificateEntry           `json:"certificates"`
	DNSRequirements  DNSRequirements              `json:"dns_requirements"`
	Validation       *CertificateValidation       `json:"validation,omitempty"`  // only of a check
	DNSRecords       *DNSRecords                  `json:"dns_records,omitempty"` // only of a check
	ValidationErrors []CertificateValidationError `json:"validation_errors"`
	Warning          string                       `json:"warning,omitempty"`
}

// CertificateEntry is one certificate of a host name.
type CertificateEntry struct {
	Source    string              `json:"source"` // custom
	Status    string              `json:"status"` // active, pending_validation
	Issuer    string              `json:"issuer"`
	Issued    []IssuedCertificate `json:"issued"`
	CreatedAt time.Time           `json:"created_at"`
	ExpiresAt time.Time           `json:"expires_at"`
}

// IssuedCertificate is what an authority issued.
type IssuedCertificate struct {
	Type                 string    `json:"type"` // rsa, ecdsa, ed25519
	CertificateAuthority string    `json:"certificate_authority"`
	ExpiresAt            time.Time `json:"expires_at"`
}

// DNSRequirements are the records that lead a host name to its app: the addresses of the app.
type DNSRequirements struct {
	A    []string `json:"a"`
	AAAA []string `json:"aaaa"`
}

// CertificateValidation is what a check found.
type CertificateValidation struct {
	DNSConfigured bool `json:"dns_configured"` // the name leads to an address of the app
}

// DNSRecords are what the name server of this node says of a host name.
type DNSRecords struct {
	A                 []string `json:"a"`
	AAAA              []string `json:"aaaa"`
	ResolvedAddresses []string `json:"resolved_addresses"`
}

// CertificateValidationError is one thing that is not as it should be.
type CertificateValidationError struct {
	Code        string    `json:"code"`
	Message     string    `json:"message"`
	Remediation string    `json:"remediation"`
	Timestamp   time.Time `json:"timestamp"`
}
